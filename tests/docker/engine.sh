#!/usr/bin/env bash
# A Docker engine for the tests on a machine without systemd (root; docker.io is installed).
#
#   engine.sh start   print the address of an engine that answers, and whether it was "started" or
#                     "found"; only if there is none is our own started
#   engine.sh stop    stop our own with its containers; another one is left alone
#
# FN_DOCKER_DIR keeps images between runs [/var/lib/fal-notebook-docker].
set -euo pipefail
dir=${FN_DOCKER_DIR:-/var/lib/fal-notebook-docker}
host=unix://$dir/docker.sock pidfile=$dir/dockerd.pid log=$dir/dockerd.log
# The cgroup of our containers finds those that outlive a killed engine.
cgroup=fn-$(printf %s "$dir" | cksum | cut -d' ' -f1)

answers() { timeout 10 docker -H "$1" version >/dev/null 2>&1; }

ours() { # our engine's pid; a pid file alone may be stale and its number reused
    local pid
    pid=$(cat "$pidfile" 2>/dev/null) && [ -n "$pid" ] || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q -- "dockerd .*$dir" && echo "$pid"
}

mount_cgroups() { # there already, but in a machine without an init
    mountpoint -q /sys/fs/cgroup && return
    mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null && return
    mount -t tmpfs cgroup /sys/fs/cgroup
    awk 'NR > 1 && $4 == 1 {print $1}' /proc/cgroups | while read -r name; do
        mkdir -p "/sys/fs/cgroup/$name"
        mount -t cgroup -o "$name" "$name" "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
    done
}

sweep() { # what an engine that was killed left: containerd, shims, containers and mounts
    local process
    for process in /proc/[0-9]*; do
        if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null |
            grep -qE "^[^ ]*containerd(-shim[^ ]*)? .*$dir/exec" || grep -qs "/$cgroup/" "$process/cgroup"
        then kill -9 "${process#/proc/}" 2>/dev/null || true; fi
    done
    awk -v d="$dir/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r |
        while read -r mounted; do umount -l "$mounted" 2>/dev/null || true; done
    rm -rf "$pidfile" "$dir/docker.sock" "$dir/exec"
}

launch() {
    setsid nohup dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$pidfile" \
        --cgroup-parent "/$cgroup" -H "$host" --shutdown-timeout 5 "$@" >>"$log" 2>&1 </dev/null 9>&- &
    local child=$!
    for _ in $(seq 300); do
        answers "$host" && return 0
        kill -0 "$child" 2>/dev/null || return 1
        sleep 0.1
    done
    kill "$child"
    return 1
}

start() {
    mkdir -p "$dir"
    exec 9>"$dir/lock"
    flock 9
    local other=${DOCKER_HOST:-unix:///var/run/docker.sock}
    if ours >/dev/null && answers "$host"; then echo "$host found"; return; fi
    if answers "$other"; then echo "$other found"; return; fi
    mount_cgroups
    sweep
    : >"$log"
    # Kernels without nf_tables have the older tables, if any.
    if [ -x /usr/sbin/iptables-legacy ] && ! iptables -t nat -L -n >/dev/null 2>&1; then
        update-alternatives --set iptables /usr/sbin/iptables-legacy >/dev/null
    fi
    launch || { tail -20 "$log" >&2; exit 1; }
    echo "$host started"
}

stop() {
    local pid
    pid=$(ours) || return 0
    kill -TERM "$pid"
    for _ in $(seq 150); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
    sweep
}

"$1"
