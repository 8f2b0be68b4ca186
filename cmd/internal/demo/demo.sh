#!/usr/bin/env bash
# A server and a mount on this machine, step by step. Everything lives in a
# temporary directory, with its own keys and state; nothing is left of it. Any
# check that fails ends the demo with an error.
#   demo.sh BIN   the directory of the built commands
set -euo pipefail
bin=$(cd "${1:?usage: demo.sh BIN}" && pwd)
PATH=$bin:$PATH

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '   $ %s\n' "$*" >&3; "$@"; }
exec 3>&1
fail() { echo "demo: FAILED: $*" >&2; exit 1; }

# What it needs.
for tool in go diff cmp cp find; do
	command -v "$tool" >/dev/null || fail "the program $tool is missing"
done
[ -e /dev/fuse ] || fail "there is no /dev/fuse: load the kernel module fuse"
[ "$(id -u)" = 0 ] || command -v fusermount3 >/dev/null || fail "only root can mount without fusermount3: apt-get install fuse3"

top=$(mktemp -d "${TMPDIR:-/tmp}/cage-demo.XXXXXX")
export XDG_CONFIG_HOME=$top/config XDG_STATE_HOME=$top/state XDG_RUNTIME_DIR=$top/run
unset "${!CAGE_@}"
mkdir -m 700 "$top/config" "$top/state" "$top/run"
mkdir "$top/export" "$top/mnt" "$top/tree"
mnt=$top/mnt
server=
cleanup() {
	code=$?
	trap - EXIT INT TERM
	cd /
	if grep -q " $mnt fuse.cage " /proc/self/mounts; then
		cagefs umount "$mnt" 2>/dev/null || umount -l "$mnt" 2>/dev/null || fusermount3 -u -z "$mnt" || true
	fi
	if [ -n "$server" ] && kill "$server" 2>/dev/null; then wait "$server" 2>/dev/null || true; fi
	if [ "$code" != 0 ] && [ -s "$top/server.log" ]; then
		echo "demo: the last lines of the server's log:" >&2
		tail -n 5 "$top/server.log" >&2
	fi
	rm -rf "$top"
	exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

same() { # same A B: equal in names, types, contents, modes, owners, times
	diff -r --no-dereference "$1" "$2" || fail "$1 and $2 differ"
	for d in "$1" "$2"; do
		(cd "$d" && find . -printf '%p %y %m %U %G %T@ %l\n' | sort)
	done >"$top/lists"
	n=$(wc -l <"$top/lists")
	diff <(head -n $((n / 2)) "$top/lists") <(tail -n $((n / 2)) "$top/lists") || fail "attributes in $1 and $2 differ"
	echo "   equal: $((n / 2)) files and directories, with modes, owners and times"
}

start=$SECONDS
say "A real tree to work with: Go's own libraries for networks and cryptography"
src=$(go env GOROOT)/src
[ -d "$src/net" ] || fail "no Go source in $src"
cp -a "$src/net" "$src/crypto" "$top/tree/"
ln -s net/http "$top/tree/web"
echo "   $(find "$top/tree" -type f | wc -l) files, $(du -sh "$top/tree" | cut -f1)"

say "A server: it exports a directory and prints one line when clients can come"
echo "   \$ cageserverd serve --export demo=$top/export --listen 127.0.0.1:0 --state $top/state &"
mkfifo "$top/ready"
cageserverd serve --export demo="$top/export" --listen 127.0.0.1:0 --state "$top/state" >"$top/ready" 2>"$top/server.log" &
server=$!
read -r -t 20 word addr <"$top/ready" || fail "the server did not start: $(tail -n 1 "$top/server.log")"
[ "$word" = ready ] || fail "the server said '$word $addr'"
echo "   ready $addr"

say "A mount: nobody typed anything about keys, since server and client are one user on one machine"
run cagefs mount "$addr:/demo" "$mnt"
grep " $mnt " /proc/self/mounts | cut -c1-100 | sed 's/^/   /'

say "Copying the tree in, and reading it back"
run cp -a "$top/tree/." "$mnt/"
run cagefs sync "$mnt"
same "$top/tree" "$mnt"
echo "   The server's directory has the same files, plain, readable without Cage:"
diff -r --no-dereference --exclude=.cage "$top/tree" "$top/export" || fail "the exported directory differs"
run cagejournal label copied "$mnt"

say "A file is changed, by mistake"
echo "   \$ echo oops > $mnt/net/dial.go"
echo oops >"$mnt/net/dial.go"
run cagejournal log -n 3 "$mnt/net/dial.go"

say "The file as it was, while the present lives on"
cagejournal cat "$mnt/net/dial.go@label:copied" >"$top/dial.go"
cmp "$top/dial.go" "$top/tree/net/dial.go" || fail "the past of dial.go is not what it was"
echo "   $(head -n 1 "$top/dial.go")"

say "Rolling the file back: first the plan, then for good"
run cagejournal rollback "$mnt/net/dial.go" --to @label:copied -n
run cagejournal rollback "$mnt/net/dial.go" --to @label:copied -y
same "$top/tree" "$mnt"

say "A whole tree is deleted, and half of another is moved away"
run rm -rf "$mnt/net/http"
run mv "$mnt/net/netip" "$mnt/moved-away"
echo draft >"$mnt/new-file"
echo "   $(find "$mnt" -type f | wc -l) files are left"
run cagejournal log -n 4 "$mnt"

say "Rolling everything back to the moment after the copy"
run cagejournal rollback "$mnt" --to @label:copied -y --json >"$top/rollback.json"
tail -n 1 "$top/rollback.json" | sed 's/^/   /'
same "$top/tree" "$mnt"

say "A rollback is a change: it can be undone, and that undo, too"
run cagejournal undo -y "$mnt" >"$top/undo"
[ ! -e "$mnt/net/http" ] && [ -e "$mnt/moved-away" ] && [ "$(cat "$mnt/new-file")" = draft ] || fail "the undo of the rollback did not bring the deletion back"
echo "   net/http is gone again, moved-away and new-file are there again"
run cagejournal redo -y "$mnt" >"$top/redo"
same "$top/tree" "$mnt"

say "The journal, checked; and what it takes"
run cagejournal verify "$mnt"
run cagejournal usage "$mnt"

say "Unmounting: it returns when everything is delivered and the process is gone"
run cagefs status "$mnt"
run cagefs umount "$mnt"
grep -q " $mnt fuse.cage " /proc/self/mounts && fail "still mounted"
[ -z "$(ls -A "$mnt")" ] || fail "something is left in the mountpoint"

say "Stopping the server: the files are plain files, history can be read offline"
kill "$server"
wait "$server" || fail "the server ended with an error: $(tail -n 1 "$top/server.log")"
server=
diff -r --no-dereference --exclude=.cage "$top/tree" "$top/export" || fail "the exported directory differs"
run cagejournal log -n 2 --dir "$top/export"

say "Done in $((SECONDS - start)) seconds; everything that was promised was checked"
