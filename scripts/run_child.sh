# Sourced by scripts that run others: run_child COMMAND [WORD ...] runs it to its end and returns its exit code.
# Bash waits for a command in the foreground before it looks at signals, and one that ends bash leaves the command
# alone; so the command runs beside it, in a group of its own, and is sent every signal that asks this script to end.
run_child() {
  local child='' code early='' name signalled
  for name in INT TERM HUP USR1; do
    # shellcheck disable=SC2064
    trap "if [ -n \"\$child\" ]; then signalled=yes; kill -$name \"\$child\" 2>/dev/null || true; else early=$name; fi" "$name"
  done
  set -m
  "$@" &
  child=$!
  set +m
  # A signal that came before there was a child, which in its first moment would swallow it.
  [ -z "$early" ] || { sleep 0.5 && kill -"$early" "$child" 2>/dev/null; } || true
  while :; do
    signalled=
    code=0
    wait "$child" || code=$?
    # A signal ends the wait and not the command.
    [ -n "$signalled" ] || break
  done
  trap - INT TERM HUP USR1
  return "$code"
}
