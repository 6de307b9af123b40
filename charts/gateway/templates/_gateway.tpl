{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end }}
