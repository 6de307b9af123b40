{{/* Labels that select ztunnel's pods; never changed. */}}
{{- define "ztunnel.selector" -}}
app: ztunnel
{{- end }}

{{- define "ztunnel.xdsAddress" -}}
{{ .Values.xdsAddress | default (printf "https://culvert-controlplane.%s.svc:15012" .Release.Namespace) }}
{{- end }}

{{- define "ztunnel.env" -}}
- {name: XDS_ADDRESS, value: {{ include "ztunnel.xdsAddress" . | quote }}}
- {name: CA_ADDRESS, value: {{ .Values.caAddress | default .Values.global.caAddress | default (include "ztunnel.xdsAddress" .) | quote }}}
- {name: XDS_ROOT_CA, value: /var/run/secrets/istio/root-cert.pem}
- {name: CA_ROOT_CA, value: /var/run/secrets/istio/root-cert.pem}
- {name: AUTH_TOKEN, value: /var/run/secrets/tokens/istio-token}
- {name: INPOD_UDS, value: /var/run/ztunnel/ztunnel.sock}
- {name: CLUSTER_ID, value: {{ .Values.global.multiCluster.clusterName | quote }}}
- {name: CLUSTER_DOMAIN, value: {{ .Values.global.clusterDomain | quote }}}
{{- with .Values.global.network }}
- {name: NETWORK, value: {{ . | quote }}}
{{- end }}
- {name: TRUST_DOMAIN, value: {{ .Values.global.trustDomain | quote }}}
- {name: ROOT_NAMESPACE, value: {{ include "culvert.rootNamespace" . | quote }}}
- {name: RUST_LOG, value: {{ printf "%s%s" .Values.global.logLevel (ternary (printf ",access=%s" .Values.accessLogLevel) "" (ne .Values.accessLogLevel "")) | quote }}}
- {name: LOG_FORMAT, value: {{ .Values.global.logFormat | quote }}}
{{- if .Values.peerCaCrl }}
- {name: CRL_PATH, value: /var/run/secrets/crl/ca-crl.pem}
{{- end }}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: SERVICE_ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
- {name: INSTANCE_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
{{- include "culvert.env" . }}
{{- end }}
