# A TPU slice by gcloud: paste command by command, with your own NAME, ZONE and BUCKET, where config.json is.

# A v5e slice of 64 chips, queued until there is one; v6e-64 with v2-alpha-tpuv6e, v5p-128 with v2-alpha-tpuv5.
gcloud compute tpus queued-resources create NAME --node-id NAME --zone ZONE \
  --accelerator-type v5litepod-64 --runtime-version v2-alpha-tpuv5-lite

# Once on every machine: the package, in an environment of its own, since the machines' own Python may be 3.10.
gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command \
  'pip install --user uv && ~/.local/bin/uv tool install --python 3.12 "clip-train[tpu]"'

# On every machine at the same time; the machines find each other. Started again it continues.
gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command \
  '~/.local/bin/clip-train run gs://BUCKET/config.json --set output_dir=gs://BUCKET/run'
