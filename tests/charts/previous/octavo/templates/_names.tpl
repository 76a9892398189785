{{/* The name of everything in this chart: RELEASE-operator, or octavo-operator for a release "octavo". */}}
{{- define "octavo.name" -}}
{{- if contains "octavo" .Release.Name -}}
{{- printf "%s-operator" .Release.Name | trunc 63 -}}
{{- else -}}
{{- printf "%s-octavo-operator" .Release.Name | trunc 63 -}}
{{- end -}}
{{- end -}}

{{- define "octavo.selector" -}}
app.kubernetes.io/name: octavo-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "octavo.labels" -}}
{{ include "octavo.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
