# Sourced by the numbered scripts: run_as_job STAGE "$@" submits the stage, or runs it within the job that is there.
# In a job of sbatch, USR1 (which comes cluster.signal_seconds before the time limit) makes the stage save and leave
# and the job go back into the queue; TERM (scancel) makes it save and leave for good.

job_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$job_root/scripts/run_child.sh"
# Slurm's proctrack/pgid knows the processes of a job by their group.
child_group=

_say() { printf '[slurm %s] %s\n' "$job_task" "$*"; }

_load_modules() {
  [ "$#" -gt 0 ] || return 0
  local file
  for file in "${MODULESHOME:-/usr/share/modules}/init/bash" "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash" \
    /etc/profile.d/modules.sh /etc/profile.d/lmod.sh; do
    if [ "$(type -t module)" = function ]; then break; fi
    if [ -r "$file" ]; then . "$file"; fi
  done
  if [ "$(type -t module)" != function ]; then
    echo "error: cluster.modules asks for $*, and there is no module command on $(hostname); install it or take them out" >&2
    return 2
  fi
  local name
  for name; do
    if ! module load "$name"; then
      echo "error: module load $name failed on $(hostname) (cluster.modules); module avail lists what there is" >&2
      return 2
    fi
  done
}

# What the configuration says about this job, of which the job's notes are written too.
_enter() {
  local answer attempt kind value
  answer=$(mktemp) || { job_code=$? && return "$job_code"; }
  # In the foreground, where bash looks at a signal only afterwards: how often the job may go back is known then.
  # A signal to all processes of the job ends it as well; so it is done again.
  for attempt in 1 2; do
    job_code=0
    bash "$job_root/scripts/run_stage.sh" enter_job "$job_stage" "$@" > "$answer" || job_code=$?
    if [ "$told" != USR1 ] || [ "$job_code" -le 2 ]; then break; fi
  done
  while IFS= read -r -d '' kind && IFS= read -r -d '' value; do
    case $kind in
      notes) job_notes=$value ;;
      requeues) job_requeues=$value ;;
      module) job_modules+=("$value") ;;
      variable) job_variables+=("$value") ;;
      word) job_words+=("$value") ;;
    esac
  done < "$answer"
  rm -f "$answer"
  return "$job_code"
}

_run() {
  local launcher=()
  if [ "$job_nodes" -gt 1 ]; then
    launcher=(srun --ntasks-per-node=1 --kill-on-bad-exit=1)
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || launcher+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    # srun ends its tasks by force at a TERM; at a USR1 it hands it on, and the stage does the same at both.
    child_hears=USR1
  fi
  run_child env "${job_variables[@]}" "${launcher[@]}" bash "$job_root/scripts/run_stage.sh" "$job_stage" \
    "${job_words[@]}" || job_code=$?
}

_note_end() {
  [ -n "$job_notes" ] || return 0
  printf '{"code": %d, "outcome": "%s", "ended": "%s"}\n' "$1" "$2" "$(date -u +%FT%T+00:00)" \
    > "$job_notes/.$job_task.ended" && mv "$job_notes/.$job_task.ended" "$job_notes/$job_task.ended.json"
}

_finish() {
  local restarts=${SLURM_RESTART_COUNT:-0} refusal
  if [ "$job_code" = 0 ]; then
    _note_end 0 "done"
  elif [ "$told" = TERM ]; then
    _say "told to end (scancel, the time limit, its node going down, or a requeue that was not the job's own):" \
      "what was done is saved"
    _note_end "$job_code" "told to end"
  elif [ "$told" != USR1 ] || [ "$job_code" = 2 ]; then
    _note_end "$job_code" failed
  elif [ -z "$job_requeues" ]; then
    _say "told to leave before the configuration was read; it does not go back into the queue: submit it again"
  elif [ "$restarts" -ge "$job_requeues" ]; then
    _say "told to leave; it does not go back into the queue, where it was as often as cluster.max_requeues allows" \
      "($job_requeues): what was done is saved, and submitting it again continues"
    _note_end "$job_code" "no requeue left"
  else
    _say "told to leave: back into the queue, requeue $((restarts + 1)) of at most $job_requeues"
    _note_end "$job_code" requeued
    # Slurm ends this job as soon as it has put it back.
    if ! refusal=$(scontrol requeue "$job_task" 2>&1); then
      _say "error: scontrol requeue $job_task failed: $refusal; what was done is saved," \
        "and submitting it again continues"
      _note_end "$job_code" "not requeued: scontrol failed"
    fi
  fi
  exit "$job_code"
}

run_as_job() {
  job_stage=$1
  shift
  if [ -z "${SLURM_JOB_ID:-}" ]; then
    exec bash "$job_root/scripts/run_stage.sh" submit_jobs --stage "$job_stage" "$@"
  fi
  job_task=$SLURM_JOB_ID job_nodes=1 job_code=0 job_notes='' job_requeues=''
  job_modules=() job_variables=() job_words=()
  # Slurm gives the last task of an array the number of the array: alone it would mean all tasks.
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job_task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  for word; do
    if [ "$word" = -- ]; then
      echo "error: words after -- are for sbatch, and this job is there already: put them before the script's name" >&2
      exit 2
    fi
  done
  _enter "$@" || _finish
  _load_modules "${job_modules[@]}" || { job_code=$? && _finish; }
  [ "$job_stage" != train_model ] || job_nodes=${SLURM_JOB_NUM_NODES:-1}
  _run
  _finish
}
