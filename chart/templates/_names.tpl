{{/* The names of things, and what is said about all of them. */}}

{{/* Every object has this name, also those that no namespace holds. */}}
{{- define "remora.hub" -}}
{{ printf "%s-hub" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "remora.selector" -}}
app.kubernetes.io/name: remora
app.kubernetes.io/component: hub
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "remora.metadata" -}}
name: {{ include "remora.hub" . }}
labels:
  {{- include "remora.labels" . | nindent 2 }}
{{- end }}

{{- define "remora.labels" -}}
{{ include "remora.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "remora.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The name by which Pods and the API server know the hub. */}}
{{- define "remora.host" -}}
{{ include "remora.hub" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{/* The Secret with the certificate. */}}
{{- define "remora.secret" -}}
{{ .Values.certificate.secretName | default (printf "%s-certificate" (include "remora.hub" .)) }}
{{- end }}

{{/* Whether somebody else makes the certificate: something, or nothing. */}}
{{- define "remora.given" -}}
{{- if or .Values.certificate.secretName .Values.certificate.certManager.enabled }}given{{ end }}
{{- end }}
