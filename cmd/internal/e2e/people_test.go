package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
)

// elsewhere is the lab as another machine sees it: the same network and
// programs, but keys, mounts and state of its own.
func (l *lab) elsewhere(name string) *lab {
	l.t.Helper()
	other := *l
	other.env = slices.DeleteFunc(slices.Clone(l.env), func(e string) bool { return strings.HasPrefix(e, "XDG_") })
	for v, sub := range map[string]string{"XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state", "XDG_RUNTIME_DIR": "run"} {
		dir := l.path(name, sub)
		require.NoError(l.t, os.MkdirAll(dir, 0o700))
		other.env = append(other.env, v+"="+dir)
	}
	return &other
}

// admin runs a command of cageserverd on the server's state.
func (s *server) admin(command string, args ...string) (stdout string) {
	s.lab.t.Helper()
	return s.lab.run("cageserverd", append([]string{command, "--state", s.lab.path("server")}, args...)...)
}

// invite returns a code.
func (s *server) invite(name string, flags ...string) string {
	s.lab.t.Helper()
	return strings.TrimSpace(s.admin("invite", append([]string{name}, flags...)...))
}

// refused wants a program to fail with an exit code and a text.
func (l *lab) refused(code cli.Exit, text, prog string, args ...string) {
	l.t.Helper()
	out, err := l.try(prog, args...)
	var exit *exec.ExitError
	require.ErrorAs(l.t, err, &exit, "%s", out)
	require.Equal(l.t, int(code), exit.ExitCode(), "%v", err)
	require.ErrorContains(l.t, err, text)
	require.Equal(l.t, 1, strings.Count(err.Error(), prog+": "), "one line: %v", err)
}

// wide makes an export in which anybody may make files.
func (l *lab) wide(name string) string {
	l.t.Helper()
	dir := l.mkdir(name)
	require.NoError(l.t, os.Chmod(dir, 0o777))
	return dir
}

func TestInvitedClient(t *testing.T) {
	needRoot(t)
	l := newLab(t, "")
	export := l.wide("export")
	s := l.newServer(export, "--lease-term", "3s") // for which others wait for a client that is revoked
	s.start()
	laptop := l.elsewhere("laptop")
	laptop.refused(cli.ExitDenied, "no key for server", "cagefs", "mount", s.addr+":/data", l.mkdir("mnt"))

	code := s.invite("laptop")
	require.Contains(t, s.admin("clients"), "laptop  invited until")
	out := laptop.run("cagefs", "join", code)
	require.Contains(t, out, "joined "+s.addr+" as laptop")
	require.Contains(t, out, "cagefs mount "+s.addr+":/data MOUNTPOINT")
	point := laptop.mount(s)
	require.NoError(t, os.WriteFile(filepath.Join(point, "a"), []byte("from the laptop"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(point, "b"), []byte("not read yet"), 0o644))
	got, err := os.ReadFile(filepath.Join(export, "a"))
	require.NoError(t, err)
	require.Equal(t, "from the laptop", string(got))
	require.Contains(t, laptop.run("cagejournal", "log", "--json", "-n", "5", point), `"client":"laptop"`)

	var session struct {
		Key       string `json:"key"`
		ActsAs    string `json:"acts_as"`
		Peer      string `json:"peer"`
		OpenFiles int    `json:"open_files"`
		Locks     int    `json:"locks"`
	}
	f, err := os.Open(filepath.Join(point, "a"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_SH))
	require.NoError(t, json.Unmarshal([]byte(s.admin("sessions", "--json")), &session))
	require.Equal(t, "laptop", session.Key)
	require.Equal(t, "nobody", session.ActsAs)
	require.NotEmpty(t, session.Peer)
	require.Equal(t, 1, session.OpenFiles)
	require.Equal(t, 1, session.Locks)
	require.Contains(t, s.admin("exports"), "data\n")
	require.Contains(t, s.admin("exports", "--json"), `"sessions":1`)

	// Another client's mount is not concerned.
	own := l.mount(s)
	began := time.Now()
	require.Contains(t, s.admin("revoke", "laptop"), "1 keys, 0 invitations; 1 sessions ended")
	_, err = os.ReadFile(filepath.Join(point, "b"))
	require.ErrorIs(t, err, unix.EACCES)
	require.ErrorIs(t, os.WriteFile(filepath.Join(point, "c"), nil, 0o644), unix.EACCES)
	require.Less(t, time.Since(began), 3*time.Second, "no patience with a server that refuses")
	require.NotContains(t, s.admin("sessions"), "laptop")
	require.NotContains(t, s.admin("clients"), "laptop")
	laptop.refused(cli.ExitDenied, "does not admit this client's key", "cagefs", "mount", s.addr+":/data", l.mkdir("mnt"))
	require.NoError(t, os.WriteFile(filepath.Join(own, "d"), nil, 0o644))
	f.Close()
	laptop.umount(point)

	laptop.refused(cli.ExitDenied, "does not know the code", "cagefs", "join", code)
	laptop.run("cagefs", "join", s.invite("laptop"))
	point = laptop.mount(s)
	_, err = os.ReadFile(filepath.Join(point, "b"))
	require.NoError(t, err)
	require.Contains(t, s.admin("clients", "--json"), `"sessions":1`)
}

// A mount that was revoked goes on when the same machine joins again. What its
// session had leases of, the export's root perhaps, nobody changes for their term: this mount is no exception.
func TestJoinAgainWhileMounted(t *testing.T) {
	needRoot(t)
	l := newLab(t, "")
	s := l.newServer(l.wide("export"), "--lease-term", "3s")
	s.start()
	laptop := l.elsewhere("laptop")
	laptop.run("cagefs", "join", s.invite("laptop"))
	point := laptop.mount(s)
	s.admin("revoke", "laptop")
	_, err := os.Stat(filepath.Join(point, "x"))
	require.ErrorIs(t, err, unix.EACCES)
	laptop.run("cagefs", "join", s.invite("laptop"))
	require.Eventually(t, func() bool {
		return os.WriteFile(filepath.Join(point, "x"), nil, 0o644) == nil
	}, 20*time.Second, 50*time.Millisecond)
}

func TestRefusedCodes(t *testing.T) {
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	laptop := l.elsewhere("laptop")
	used := s.invite("laptop")
	laptop.run("cagefs", "join", used)
	l.elsewhere("thief").refused(cli.ExitDenied, "used already", "cagefs", "join", used)
	expired := s.invite("phone", "--valid", "1ns")
	laptop.refused(cli.ExitDenied, "the code expired", "cagefs", "join", expired)
	code := s.invite("tablet")
	laptop.refused(cli.ExitUsage, "mistyped", "cagefs", "join", code[:40]+code[41:])
	laptop.refused(cli.ExitUsage, "not a join code", "cagefs", "join", "hello")
	require.Contains(t, s.admin("revoke", "tablet"), "0 keys, 1 invitations")
	laptop.refused(cli.ExitDenied, "does not know the code", "cagefs", "join", code)

	// The code of one server, at the address of another.
	lost := freeAddr(t)
	elsewhere := s.invite("other", "--address", lost)
	other := l.newServer(l.mkdir("export2"))
	other.addr = lost
	other.args = []string{"serve", "--export", "data=" + l.path("export2"), "--listen", lost, "--state", l.path("server2")}
	laptop.refused(cli.ExitUnreachable, "connection refused", "cagefs", "join", elsewhere)
	other.start()
	laptop.refused(cli.ExitDenied, "another server than that of the code", "cagefs", "join", elsewhere)
	// The first address does not answer, or not as it should; the second does.
	both := s.invite("both", "--address", lost, "--address", s.addr)
	require.Contains(t, laptop.run("cagefs", "join", both), "as both")
	s.admin("revoke", "both")

	code = s.invite("late")
	s.stop()
	laptop.refused(cli.ExitUnreachable, "connection refused", "cagefs", "join", code)
	l.refused(cli.ExitUnreachable, "use --address", "cageserverd", "invite", "x", "--state", l.path("server"))
	l.refused(cli.ExitUnreachable, "no server runs", "cageserverd", "sessions", "--state", l.path("server"))
	require.Contains(t, s.admin("clients"), "late  invited until", "works without the server")
	offline := strings.TrimSpace(s.admin("invite", "offline", "--address", s.addr))
	s.start()
	laptop.run("cagefs", "join", offline)
	l.refused(cli.ExitNotFound, "no client and no invitation", "cageserverd", "revoke", "nobody", "--state", l.path("server"))
	l.refused(cli.ExitNotFound, "no export named", "cageserverd", "invite", "x", "--export", "none", "--state", l.path("server"))
	l.refused(cli.ExitNotFound, "no server has its keys there", "cageserverd", "clients", "--state", l.path("none"))
	require.NoDirExists(t, l.path("none"))
}

func TestInvitationBounds(t *testing.T) {
	needRoot(t)
	l := newLab(t, "")
	s := l.newServer(l.wide("export"), "--export", "secret="+l.wide("secret"))
	require.NoError(t, os.WriteFile(l.path("export", "a"), []byte("x"), 0o644))
	s.start()
	laptop := l.elsewhere("laptop")
	require.NotContains(t, laptop.run("cagefs", "join", s.invite("laptop", "--export", "data", "--ro")), "secret")
	laptop.refused(cli.ExitNotFound, `no export named "secret"; there are: data`, "cagefs", "mount", s.addr+":/secret", l.mkdir("mnt"))
	point := laptop.mount(s)
	_, err := os.ReadFile(filepath.Join(point, "a"))
	require.NoError(t, err)
	require.ErrorIs(t, os.WriteFile(filepath.Join(point, "b"), nil, 0o644), unix.EROFS)
	require.ErrorIs(t, os.Remove(filepath.Join(point, "a")), unix.EROFS)
	require.Contains(t, s.admin("sessions"), "read-only")
}

// owns is the uid and gid of a file.
func owns(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st.Uid, st.Gid
}

// as runs a shell command as another user, with groups, in a directory.
func as(uid, gid uint32, groups []uint32, dir, script string) error {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.New(strings.TrimSpace(string(out)))
	}
	return nil
}

// open lets other users reach what is in the lab.
func (l *lab) open() {
	for _, dir := range []string{labRoot, l.dir} {
		require.NoError(l.t, os.Chmod(dir, 0o711))
	}
}

// All users of an untrusted client act as one user of the server; what they
// claim to be counts for nothing.
func TestSquashing(t *testing.T) {
	needRoot(t)
	l := newLab(t, "")
	l.open()
	export := l.wide("export")
	for name, f := range map[string]struct {
		uid  int
		mode os.FileMode
	}{"roots": {0, 0o600}, "others": {4321, 0o644}, "group": {0, 0o640}} {
		require.NoError(t, os.WriteFile(filepath.Join(export, name), []byte("secret"), 0o600))
		require.NoError(t, os.Chown(filepath.Join(export, name), f.uid, 4321))
		require.NoError(t, os.Chmod(filepath.Join(export, name), f.mode))
	}
	s := l.newServer(export)
	s.start()
	l.refused(cli.ExitUsage, "only a client with --trust-ids", "cageserverd", "invite", "x", "--as", "root", "--state", l.path("server"))
	l.refused(cli.ExitUsage, "exclude each other", "cageserverd", "invite", "x", "--as", "daemon", "--trust-ids", "--state", l.path("server"))
	l.refused(cli.ExitNotFound, "has no user", "cageserverd", "invite", "x", "--as", "no-such-user", "--state", l.path("server"))

	for _, c := range []struct {
		name  string
		flags []string
		uid   uint32
	}{{"plain", nil, 65534}, {"asdaemon", []string{"--as", "daemon"}, 1}} {
		t.Run(c.name, func(t *testing.T) {
			client := l.elsewhere(c.name)
			client.t = t
			client.run("cagefs", "join", s.invite(c.name, c.flags...))
			point := client.mount(s)
			in := func(name string) string { return filepath.Join(point, name) }
			for _, who := range []uint32{0, 4321} {
				require.NoError(t, as(who, who, []uint32{4321}, point, "echo x > "+c.name+"-$(id -u)"), "uid %d", who)
			}
			for _, name := range []string{c.name + "-0", c.name + "-4321"} {
				uid, _ := owns(t, filepath.Join(export, name))
				require.Equal(t, c.uid, uid, name)
			}
			// Neither root's uid nor a group that somebody claims opens anything.
			require.ErrorContains(t, as(0, 0, nil, point, "cat roots"), "Permission denied")
			require.ErrorContains(t, as(0, 0, nil, point, "echo x > others"), "Permission denied")
			require.ErrorContains(t, as(4321, 4321, []uint32{4321}, point, "cat group"), "Permission denied")
			require.ErrorIs(t, os.Chmod(in("others"), 0o4755), unix.EPERM)
			require.ErrorIs(t, unix.Chmod(in(c.name+"-0"), 0o4755), unix.EPERM)
			require.ErrorIs(t, os.Chown(in("others"), 0, 0), unix.EPERM)
			require.ErrorIs(t, os.Chown(in(c.name+"-0"), 4321, 4321), unix.EPERM, "giving away")
			require.ErrorIs(t, unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.EPERM)
			require.ErrorIs(t, unix.Mknod(in("disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(7, 0))), unix.EPERM)
			require.ErrorIs(t, unix.Setxattr(in(c.name+"-0"), "trusted.x", []byte("y"), 0), unix.EPERM)
		})
	}
	client := l.elsewhere("trusted")
	client.run("cagefs", "join", s.invite("trusted", "--trust-ids"))
	point := client.mount(s)
	require.NoError(t, as(4321, 4321, nil, point, "echo x > mine; echo y >> others; cat group"))
	uid, _ := owns(t, filepath.Join(export, "mine"))
	require.EqualValues(t, 4321, uid)
	require.ErrorContains(t, as(4321, 4321, nil, point, "cat roots"), "Permission denied")
	require.NoError(t, as(0, 0, nil, point, "cat roots && chown 77 mine && mknod null c 1 3"))
	uid, _ = owns(t, filepath.Join(export, "mine"))
	require.EqualValues(t, 77, uid)
}

// The admin socket is its owner's and root's, whatever its mode says.
func TestAdminSocketIsPrivate(t *testing.T) {
	needRoot(t)
	l := newLab(t, "")
	l.open()
	s := l.newServer(l.mkdir("export"))
	s.start()
	other := func() error {
		cmd := l.command("cageserverd", "sessions", "--state", l.path("server"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4321, Gid: 4321}}
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		return errors.New(string(out))
	}
	var st unix.Stat_t
	require.NoError(t, unix.Stat(l.path("server", "admin.sock"), &st))
	require.EqualValues(t, 0o600, st.Mode&0o777)
	require.ErrorContains(t, other(), "another user's")
	require.NoError(t, os.Chmod(l.path("server"), 0o755))
	require.NoError(t, os.Chmod(l.path("server", "admin.sock"), 0o666))
	require.ErrorContains(t, other(), "ended before it answered", "the kernel lets it connect, the server does not")
	require.Empty(t, s.admin("sessions"))
}

// A journal beside its export survives the server, and tools find it.
func TestJournalBesideTheExport(t *testing.T) {
	l := newLab(t, "")
	export, journal := l.mkdir("export"), l.mkdir("journal")
	require.NoError(t, os.WriteFile(l.path("server.conf"), []byte("# of a test\njournal = data="+journal+"\n"), 0o644))
	s := l.newServer(export, "--config", l.path("server.conf"))
	s.start()
	point := l.mount(s)
	for range 3 {
		require.NoError(t, os.WriteFile(filepath.Join(point, "f"), []byte("content"), 0o644))
	}
	names, err := os.ReadDir(point)
	require.NoError(t, err)
	require.Len(t, names, 1)
	require.ErrorIs(t, os.Mkdir(filepath.Join(point, ".cage"), 0o755), unix.EPERM)
	_, err = os.Stat(filepath.Join(point, ".cage"))
	require.ErrorIs(t, err, unix.ENOENT)
	l.run("cagefs", "sync", point)
	s.kill()
	require.Contains(t, l.run("cageserverd", "recover", export), "after a crash")
	require.NoError(t, l.verify(export))
	l.refused(cli.ExitConflict, "say so with --journal", "cageserverd", "serve", "--export", "data="+export, "--listen", s.addr, "--state", l.path("server"))
	s.start()
	got, err := os.ReadFile(filepath.Join(point, "f"))
	require.NoError(t, err)
	require.Equal(t, "content", string(got))
	require.NoError(t, os.Remove(filepath.Join(point, "f")))
	l.umount(point)
}
