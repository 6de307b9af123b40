{{/* Labels that select the agent's pods; never changed. */}}
{{- define "cni.selector" -}}
app: culvert-cni
{{- end }}

{{- define "cni.podLabels" -}}
{{ include "cni.selector" . }}
{{ include "culvert.labels" . }}
{{- if .Values.global.compatibility.istio }}
k8s-app: istio-cni-node
{{- end }}
istio.io/dataplane-mode: none
sidecar.istio.io/inject: "false"
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Folders of the node: the value, else the platform's, else plain Kubernetes'. */}}
{{- define "cni.confDir" -}}
{{ .Values.cniConfDir | default (get (include "culvert.platform" . | fromYaml) "confDir") | default "/etc/cni/net.d" }}
{{- end }}
{{- define "cni.binDir" -}}
{{ .Values.cniBinDir | default (get (include "culvert.platform" . | fromYaml) "binDir") | default "/opt/cni/bin" }}
{{- end }}
{{- define "cni.netnsDir" -}}
{{ .Values.cniNetnsDir | default (get (include "culvert.platform" . | fromYaml) "netnsDir") | default "/var/run/netns" }}
{{- end }}
{{- define "cni.ownConf" -}}
{{ .Values.ownConfFileName | default (get (include "culvert.platform" . | fromYaml) "ownConf") }}
{{- end }}

{{- define "cni.xdsAddress" -}}
{{ .Values.xdsAddress | default (printf "https://culvert-controlplane.%s.svc:15012" .Release.Namespace) }}
{{- end }}

{{- define "cni.args" -}}
- --kube
- --node=$(NODE_NAME)
- --proc=/host/proc
- --socket=/var/run/culvert-cni/pluginevent.sock
- --zds=/var/run/ztunnel/ztunnel.sock
- --eligibility=/var/run/culvert-cni/eligibility.json
- --cni-conf-dir={{ include "cni.confDir" . }}
- --cni-bin-dir={{ include "cni.binDir" . }}
- --netns-mounts={{ include "cni.netnsDir" . }}
{{- with .Values.cniConfFileName }}
- --cni-conf={{ . }}
{{- end }}
{{- with include "cni.ownConf" . }}
- --cni-own-conf={{ . }}
{{- end }}
{{- range .Values.excludeNamespaces }}
- --exclude-namespace={{ . }}
{{- end }}
- --dns-capture={{ .Values.ambient.dnsCapture }}
{{- if .Values.probeSNAT }}
- --probe-snat
{{- end }}
{{- if .Values.prove }}
- --prove
- --root-configmap=istio-ca-root-cert
{{- end }}
- --drain-grace={{ .Values.drainGrace }}
- --admin-listen=:{{ .Values.adminPort }}
- --log-level={{ .Values.global.logLevel }}
- --log-format={{ .Values.global.logFormat }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
