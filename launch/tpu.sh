# A TPU slice by gcloud: paste command by command, with your own NAME, ZONE and BUCKET.

# A v5e slice of 64 chips, queued until there is one; v6e-64 with v2-alpha-tpuv6e, v5p-128 with v2-alpha-tpuv5.
gcloud compute tpus queued-resources create NAME --node-id NAME --zone ZONE \
  --accelerator-type v5litepod-64 --runtime-version v2-alpha-tpuv5-lite

# Once on every machine: the package, and a directory that all of them see, here a bucket.
gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command \
  'pip install "clip-train[tpu]" && sudo mkdir -p /run-dir && sudo chown $USER /run-dir && gcsfuse --implicit-dirs BUCKET /run-dir'

# On every machine at the same time; the machines find each other. Started again it continues.
gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command \
  'clip-train run /run-dir/config.json --set output_dir=/run-dir/run'
