{{/*
What the charts have in common. Each has this same file, so that each can be installed
by itself; a test holds them equal.
*/}}

{{/* Labels of every object. */}}
{{- define "culvert.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The image of a program: the whole of .Values.image, or its name at the hub with the tag. */}}
{{- define "culvert.image" -}}
{{- $image := .Values.image -}}
{{- if contains "/" $image -}}
{{ $image }}
{{- else -}}
{{ .Values.global.hub | trimSuffix "/" }}/{{ $image }}:{{ .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Where mesh-wide policies are. */}}
{{- define "culvert.rootNamespace" -}}
{{ .Values.global.rootNamespace | default .Release.Namespace }}
{{- end }}

{{/*
What is particular about a platform, from its public documentation. Everything that is not
named is as in plain Kubernetes: /etc/cni/net.d and /opt/cni/bin.
  confDir, binDir  where the container runtime has its CNI configuration and programs
  netnsDir         where the runtime binds pods' network namespaces
  ownConf          the plugin gets a configuration of its own; the cluster's is not added to
  quota            priority classes system-… need a ResourceQuota outside of kube-system
  scc              pods need a SecurityContextConstraints, and an SELinux type that may talk over host sockets
*/}}
{{- define "culvert.platforms" -}}
aks: {}
eks: {}
gke: {binDir: /home/kubernetes/bin, quota: true}
k3d: {confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d, binDir: /bin}
k3s: {confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d, binDir: /var/lib/rancher/k3s/data/cni}
kind: {}
microk8s: {confDir: /var/snap/microk8s/current/args/cni-network, binDir: /var/snap/microk8s/current/opt/cni/bin}
minikube: {netnsDir: /var/run/docker/netns}
openshift: {confDir: /etc/cni/multus/net.d, binDir: /var/lib/cni/bin, ownConf: culvert-cni.conf, scc: true}
rke2: {}
talos: {}
{{- end }}

{{/* The entry of .Values.global.platform, as YAML. */}}
{{- define "culvert.platform" -}}
{{- $platforms := include "culvert.platforms" . | fromYaml -}}
{{- get $platforms (.Values.global.platform | default "kind") | toYaml -}}
{{- end }}

{{/* Fields of a pod's specification that every program has. */}}
{{- define "culvert.podSpec" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/*
A quota that lets the chart's pods have their priority, where the platform or .Values.resourceQuotas
wants one. Its argument is the name of the object.
*/}}
{{- define "culvert.quota" -}}
{{- $root := index . 0 -}}
{{- $values := $root.Values -}}
{{- $needed := (include "culvert.platform" $root | fromYaml).quota -}}
{{- if kindIs "bool" $values.resourceQuotas.enabled }}{{ $needed = $values.resourceQuotas.enabled }}{{ end -}}
{{- if and $needed $values.priorityClassName (ne $root.Release.Namespace "kube-system") -}}
# Such a priority is given outside of kube-system only where a quota says so.
apiVersion: v1
kind: ResourceQuota
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "culvert.labels" $root | nindent 4 }}
spec:
  hard: {pods: {{ $values.resourceQuotas.pods | quote }}}
  scopeSelector:
    matchExpressions:
    - {operator: In, scopeName: PriorityClass, values: [{{ $values.priorityClassName }}]}
{{- end }}
{{- end }}

{{/* One environment variable per entry of .Values.env. */}}
{{- define "culvert.env" -}}
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
