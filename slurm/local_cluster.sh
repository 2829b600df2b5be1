#!/usr/bin/env bash
# A real SLURM controller with two nodes on this one machine, for tests and for trying `platform submit`.
#
#   slurm/local_cluster.sh install        apt-get: slurm-wlm and munge (Debian, Ubuntu; needs root)
#   slurm/local_cluster.sh start DIR      munged, slurmctld and slurmd for the nodes n1 and n2; all files are in DIR
#   slurm/local_cluster.sh node DIR n2    restart the daemon of one node
#   slurm/local_cluster.sh stop DIR       stop what `start` started
#
# Then: export SLURM_CONF=DIR/slurm.conf; sinfo. It uses free ports and touches nothing outside DIR, so several such
# clusters can run side by side. A job in the partition `high` preempts jobs in `low` (the default): SIGTERM, 60 seconds
# of grace, then the job is killed. SLURM does not requeue what it preempts; the job does that itself.
# Nodes claim 4 cores and 8 GPUs that do not exist, so that jobs asking for them are accepted.
set -euo pipefail

fail() { echo "local_cluster: $*" >&2; exit 1; }

install_packages() {
  command -v slurmctld slurmd munged sbatch > /dev/null && return
  [ "$(id -u)" = 0 ] || fail "installing needs root"
  command -v apt-get > /dev/null || fail "installing needs apt-get"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null
}

# Four different ports that are free now.
free_ports() {
  python3 -c '
import socket
sockets = [socket.socket() for _ in range(4)]
for s in sockets: s.bind(("", 0))
print(*(s.getsockname()[1] for s in sockets))'
}

write_config() {
  local dir=$1 host controller n1 n2 launch
  host=$(hostname -s)
  read -r controller n1 n2 launch < <(free_ports)
  cat > "$dir/slurm.conf" << CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=10
MinJobAge=3600
SlurmdTimeout=10
SlurmctldTimeout=60
ReturnToService=2
MaxNodeCount=8
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n1 CPUs=4 RealMemory=1000 Gres=gpu:8
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n2 CPUs=4 RealMemory=1000 Gres=gpu:8
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
CONF
  touch "$dir"/gpu{0..7}
  echo "Name=gpu File=$dir/gpu[0-7]" > "$dir/gres.conf"
  # Newer daemons want cgroups of their own; those before 24 reject this setting and do not need it.
  [ "$(slurmctld -V | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -lt 24 ] || echo "CgroupPlugin=disabled" > "$dir/cgroup.conf"
}

start_node() {
  local dir=$1 node=$2
  SLURM_CONF=$dir/slurm.conf slurmd -N "$node" -f "$dir/slurm.conf"
}

start() {
  local dir=$1 _
  command -v slurmctld slurmd munged sbatch > /dev/null || fail "SLURM is not installed; first: $0 install"
  [ ! -e "$dir/slurm.conf" ] || fail "$dir holds a cluster already; first: $0 stop $dir"
  mkdir -p "$dir/state" "$dir/spool.n1" "$dir/spool.n2"
  chmod 755 "$dir"
  dir=$(cd "$dir" && pwd)
  head -c 1024 /dev/urandom > "$dir/munge.key" && chmod 600 "$dir/munge.key"
  # --force: munged wants folders that only its user can write to; a folder below /tmp is not one.
  munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" > "$dir/munged.out" 2>&1 || fail "$(cat "$dir/munged.out")"
  write_config "$dir"
  export SLURM_CONF=$dir/slurm.conf
  { slurmctld -f "$SLURM_CONF" && start_node "$dir" n1 && start_node "$dir" n2; } || give_up "$dir" "a daemon did not start"
  for _ in $(seq 60); do
    [ "$(sinfo -h -p low -N -o %T 2> /dev/null | sort | uniq -c | xargs)" = "2 idle" ] && { echo "export SLURM_CONF=$SLURM_CONF"; return; }
    sleep 0.5
  done
  give_up "$dir" "the nodes did not become idle within 30 seconds"
}

give_up() {
  sinfo >&2 || true
  grep -h error "$1"/*.log | tail -n 10 >&2 || true
  stop "$1"
  fail "$2"
}

stop() {
  local dir=$1 name pid
  export SLURM_CONF=$dir/slurm.conf
  [ -e "$SLURM_CONF" ] || return 0
  scancel --state=RUNNING,PENDING --user="$(id -un)" 2> /dev/null || true
  for _ in $(seq 20); do
    [ -z "$(squeue -h 2> /dev/null)" ] && break
    sleep 0.5
  done
  for name in slurmd.n1 slurmd.n2 slurmctld munged; do
    pid=$(cat "$dir/$name.pid" 2> /dev/null) || continue
    kill "$pid" 2> /dev/null || true
  done
  rm -f "$SLURM_CONF"
}

case "${1:-} $#" in
  "install 1") install_packages ;;
  "start 2") start "$2" ;;
  "node 3") start_node "$(cd "$2" && pwd)" "$3" ;;
  "stop 2") stop "$2" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
