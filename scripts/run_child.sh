# Sourced by scripts that run others: run_child COMMAND [WORD ...] runs it to its end and returns its exit code.
# Bash waits for a command in the foreground before it looks at signals, and one that ends bash leaves the command
# alone; so the command runs beside it, and is sent every signal that asks this script to end. Once one has come,
# run_child runs nothing more and returns 75, the exit code of what was interrupted.

# The last signal that came.
told=${told:-}
child=
# Whether the command has a process group of its own: then it does not hear of Ctrl-C itself.
child_group=yes
# What the command is sent, if not the signal itself.
child_hears=

_hear() {
  told=$1
  if [ -z "$child" ] || [ "$told$child_group" = INT ]; then return 0; fi
  kill -"${child_hears:-$told}" "$child" 2>/dev/null || true
}

for name in INT TERM HUP USR1; do
  # shellcheck disable=SC2064
  trap "_hear $name" "$name"
done

run_child() {
  local code last=0
  [ -z "$told" ] || return 75
  [ -z "$child_group" ] || set -m
  "$@" &
  child=$!
  set +m
  # A signal that came before the child was known. In its first moment a child of bash would swallow it.
  [ -z "$told" ] || { sleep 0.5 && _hear "$told"; }
  # A signal ends the wait and not the child.
  while :; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  # Its code, should it have ended while a signal was looked at; 127 where it was told already.
  wait "$child" 2>/dev/null || last=$?
  [ "$last" = 127 ] || code=$last
  child=
  return "$code"
}
