"""The manifests as package data: for `kubectl apply -k`, and what `smallbench k8s` starts from."""
