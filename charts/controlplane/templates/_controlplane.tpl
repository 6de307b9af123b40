{{/* Labels that select the control plane's pods; never changed. */}}
{{- define "controlplane.selector" -}}
app: culvert-controlplane
{{- end }}

{{- define "controlplane.podLabels" -}}
{{ include "controlplane.selector" . }}
{{ include "culvert.labels" . }}
{{- if .Values.global.compatibility.istio }}
istio: pilot
istio.io/rev: default
{{- end }}
istio.io/dataplane-mode: none
sidecar.istio.io/inject: "false"
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* DNS names by which proxies and the API server reach it. */}}
{{- define "controlplane.hostnames" -}}
{{- $services := list "culvert-controlplane" -}}
{{- if .Values.global.compatibility.istio -}}{{- $services = append $services "istiod" -}}{{- end -}}
{{- range $services }}
- {{ . }}.{{ $.Release.Namespace }}
- {{ . }}.{{ $.Release.Namespace }}.svc
- {{ . }}.{{ $.Release.Namespace }}.svc.{{ $.Values.global.clusterDomain }}
{{- end }}
{{- end }}

{{- define "controlplane.waypointImage" -}}
{{- $image := .Values.gatewayController.waypointImage -}}
{{- if contains "/" $image -}}
{{ $image }}
{{- else -}}
{{ .Values.global.hub | trimSuffix "/" }}/{{ $image }}:{{ .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "controlplane.args" -}}
- --kube
- --namespace=$(POD_NAMESPACE)
- --trust-domain={{ .Values.global.trustDomain }}
- --cluster-domain={{ .Values.global.clusterDomain }}
- --cluster={{ .Values.global.multiCluster.clusterName }}
{{- with .Values.global.network }}
- --network={{ . }}
{{- end }}
- --root-namespace={{ include "culvert.rootNamespace" . }}
- --audience={{ .Values.tokenAudience }}
- --node-account={{ .Release.Namespace }}/ztunnel
{{- range .Values.trustedNodeAccounts }}
- --node-account={{ . }}
{{- end }}
{{- range include "controlplane.hostnames" . | fromYamlArray }}
- --hostname={{ . }}
{{- end }}
- --ca-secret-name={{ .Values.caSecretName }}
- --trust-bundle={{ .Values.trustBundle }}
{{- with .Values.global.caAddress }}
- --ca-address={{ . }}
{{- end }}
- --drain={{ .Values.drain }}
{{- if .Values.enforceNetworkPolicies }}
- --network-policies=true
{{- end }}
- --gateway-controller={{ .Values.gatewayController.enabled }}
{{- if .Values.gatewayController.enabled }}
- --waypoint-image={{ include "controlplane.waypointImage" . }}
{{- end }}
{{- if .Values.webhook.enabled }}
- --webhook-listen=:15017
- --webhook-failure-policy={{ .Values.webhook.failurePolicy }}
{{- else }}
- --webhook-listen=
{{- end }}
- --log-level={{ .Values.global.logLevel }}
- --log-format={{ .Values.global.logFormat }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
