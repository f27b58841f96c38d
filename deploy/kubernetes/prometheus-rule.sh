#!/bin/sh
# Prints deploy/monitoring/alerts.yml as a PrometheusRule, for `kubectl apply --filename -`.
set -eu
cat << 'RULE'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: brats-ldm
  labels: { app.kubernetes.io/name: brats-ldm }
spec:
RULE
sed 's/^/  /' "$(dirname "$0")/../monitoring/alerts.yml"
