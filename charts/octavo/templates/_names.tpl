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

{{/* An image of the registry, if one is given: include "octavo.image" (list . "repository:tag"). */}}
{{- define "octavo.image" -}}
{{- $registry := (index . 0).Values.image.registry -}}
{{- if $registry }}{{ $registry }}/{{ end }}{{ index . 1 }}
{{- end -}}

{{- define "octavo.operatorImage" -}}
{{- include "octavo.image" (list . (printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion))) -}}
{{- end -}}

{{/* RELEASE-metrics-api, as octavo.name. */}}
{{- define "octavo.metricsApiName" -}}
{{- if contains "octavo" .Release.Name -}}
{{- printf "%s-metrics-api" .Release.Name | trunc 63 -}}
{{- else -}}
{{- printf "%s-octavo-metrics-api" .Release.Name | trunc 63 -}}
{{- end -}}
{{- end -}}

{{- define "octavo.metricsApiSelector" -}}
app.kubernetes.io/name: octavo-metrics-api
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "octavo.metricsApiLabels" -}}
{{ include "octavo.metricsApiSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* An APIService is the whole cluster's: an install of some namespaces has it only where that is said. */}}
{{- define "octavo.hasMetricsApi" -}}
{{- if and .Values.metricsApi.enabled (or (empty .Values.watchNamespaces) .Values.metricsApi.clusterWide) }}true{{ end -}}
{{- end -}}
