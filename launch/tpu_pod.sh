#!/bin/bash
# A training run on a Cloud TPU slice: asks for the slice, installs this checkout on every host, runs, watches, removes.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=speech TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite
#   launch/tpu_pod.sh create                  # a place in the queue for the slice (a spot slice with SPOT=1)
#   launch/tpu_pod.sh status                  # ACTIVE once the slice is there
#   launch/tpu_pod.sh install                 # this checkout with its [tpu] extra, on every host
#   launch/tpu_pod.sh run pretrain --config librispeech/best_rq_960_v5e16 --run-dir /mnt/shared/runs/pretrain
#   launch/tpu_pod.sh logs                    # what every host has written so far; the run does not need this terminal
#   launch/tpu_pod.sh stop                    # SIGTERM: all hosts save a checkpoint and leave
#   launch/tpu_pod.sh delete                  # the slice, and its place in the queue
#
# With DRY_RUN=1 every command is printed instead of run. After a preemption: delete, create, install, run; the run goes
# on from its last checkpoint. Data and run directory have to be on a file system that all hosts share (Filestore, or a
# bucket mounted by Cloud Storage FUSE).
#
# Not yet run by us: there was no slice to try it on. The commands follow Google's reference,
# cloud.google.com/sdk/gcloud/reference/compute/tpus: queued-resources create, describe, delete; tpu-vm ssh, scp. A test
# runs what goes to the hosts with a stand-in for gcloud.
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# == 0)); then
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' launch/tpu_pod.sh
    exit
fi
: "${PROJECT:?}" "${ZONE:?}" "${NAME:?}"
for name in PROJECT ZONE NAME TYPE VERSION; do # no word of these is taken for an option or another host
    if ! (LC_ALL=C && [[ ${!name:-x} =~ ^[a-z0-9]([a-z0-9.:-]*[a-z0-9])?$ ]]); then
        printf 'launch/tpu_pod.sh: %s has only letters a to z, digits, and . : - between them, not %q\n' \
            "$name" "${!name}" >&2
        exit 64
    fi
done
where=(--project="$PROJECT" --zone="$ZONE")
home=jax_speechlm

# On a host: the first Python that is new enough and can make environments; Ubuntu's 3.11 where there is none.
find_python='new() { $1 -c "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null; } &&
            for python in python3.13 python3.12 python3.11 python3; do if new $python; then break; fi; done &&
            { new $python || { sudo apt-get -qq update && sudo apt-get -qq --yes install python3.11-venv &&
            python=python3.11; }; }'

gcloud_tpu() {
    if [[ ${DRY_RUN:-} ]]; then
        printf '%q ' gcloud compute tpus "$@" && echo
    else
        gcloud compute tpus "$@"
    fi
}

everywhere() { # runs a command on every host of the slice
    gcloud_tpu tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

verb=$1
shift
case $verb in
    create)
        : "${TYPE:?}" "${VERSION:?}"
        gcloud_tpu queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
            --accelerator-type="$TYPE" --runtime-version="$VERSION" ${SPOT:+--spot}
        ;;
    status) gcloud_tpu queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)' ;;
    install)
        archive=$(mktemp --suffix=.tar.gz)
        trap 'rm -f "$archive"' EXIT
        git archive --format=tar.gz --output="$archive" HEAD
        gcloud_tpu tpu-vm scp "$archive" "$NAME:$home.tar.gz" "${where[@]}" --worker=all
        everywhere "mkdir -p $home && tar -xzf $home.tar.gz -C $home && cd $home &&
            $find_python && \$python -m venv .venv && .venv/bin/pip install --quiet --editable '.[tpu]'"
        ;;
    run)
        # JAX asks the machine which hosts belong to the slice; no variable of theirs tells it.
        command=$(printf '%q ' .venv/bin/jax-speechlm "$@")
        everywhere "cd $home && export JAX_SPEECHLM_DISTRIBUTED=1 &&
            { nohup $command > run.log 2>&1 < /dev/null & echo \$! > run.pid; }"
        ;;
    logs) everywhere "tail -n 20 $home/run.log" ;;
    stop) everywhere "kill -TERM \$(cat $home/run.pid)" ;;
    delete) gcloud_tpu queued-resources delete "$NAME" "${where[@]}" --force --quiet ;;
    *) echo "launch/tpu_pod.sh has no verb '$verb'; without any it explains itself" >&2 && exit 2 ;;
esac
