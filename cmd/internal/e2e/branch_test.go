package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
)

// branches lists the branches of a server's export.
func (s *server) branches() (out []struct {
	Branch string `json:"branch"`
	Client string `json:"client"`
	Files  int    `json:"files"`
	Bytes  int    `json:"bytes"`
}) {
	s.lab.t.Helper()
	dec := json.NewDecoder(strings.NewReader(s.lab.run("cagejournal", "branch", "list", s.addr+":/data", "--json")))
	for {
		var b struct {
			Branch string `json:"branch"`
			Client string `json:"client"`
			Files  int    `json:"files"`
			Bytes  int    `json:"bytes"`
		}
		err := dec.Decode(&b)
		if err == io.EOF {
			return out
		}
		require.NoError(s.lab.t, err)
		out = append(out, b)
	}
}

// openToWrite makes a file in a mount and returns it open, with its mount holding the write lease.
func openToWrite(t *testing.T, name, content string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(content)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	return f
}

// writeAway writes through a mount whose server is away. That needs the write leases, which a mount gives
// up that has not written for a second; so where it waits for one after all, it begins again. begin and end are those of the absence;
// a mount whose patience it outlasts may say so.
func writeAway(t *testing.T, before func(), begin, end func(), write func() error) {
	t.Helper()
	for range 10 {
		before()
		begin()
		done := make(chan error, 1)
		go func() { done <- write() }()
		select {
		case err := <-done:
			require.NoError(t, err)
			return
		case <-time.After(time.Second):
		}
		end()
		if err := <-done; !errors.Is(err, unix.ETIMEDOUT) {
			require.NoError(t, err)
		}
	}
	t.Fatal("the mount never has the write leases")
}

// TestBranch: a mount that is cut off for longer than the term of its leases keeps
// what it has told its programs of, is refused what others have written
// meanwhile, and nothing of that is lost: it is in a branch, which tells, shows, compares and applies it.
func TestBranch(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export, "--lease-term", "2s")
	s.start()
	p := newProxy(t, s.addr)
	away, here := l.through(s, p, "--hard"), l.mount(s)
	f := openToWrite(t, away+"/notes", "one\ntwo\nthree\n")
	g := openToWrite(t, away+"/alone", "")
	log := openToWrite(t, away+"/log", "first\n")
	writeAway(t, func() {
		require.NoError(t, log.Truncate(6))
		for f, text := range map[*os.File]string{f: "one", g: "nobody", log: "first\n"} {
			_, err := f.WriteAt([]byte(text), 0)
			require.NoError(t, err)
		}
		l.run("cagefs", "sync", away)
	}, p.freeze, p.thaw, func() error {
		_, err := f.WriteAt([]byte("ONE"), 0)
		_, gerr := g.WriteAt([]byte("nobody else wants it"), 0)
		_, lerr := log.WriteAt([]byte("second\n"), 6)
		return errors.Join(err, gerr, lerr)
	})
	fd, err := os.OpenFile(here+"/notes", os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = fd.WriteAt([]byte("2wo"), 4) // waits for the term
	require.NoError(t, err)
	require.NoError(t, fd.Close())
	b, err := os.ReadFile(here + "/log")
	require.NoError(t, err)
	require.Equal(t, "first\n", string(b))
	p.thaw()

	// A program that is started closes what this one has open, and is not the one to hear of it.
	require.Eventually(t, func() bool { return l.state(away).Ops == 0 }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, exec.Command("true").Run())
	_, err = l.try("cagefs", "sync", away)
	require.ErrorContains(t, err, "kept in branch", "it is told, and is not the last to tell")
	require.ErrorIs(t, f.Sync(), unix.EIO, "whoever wrote is told")
	require.NoError(t, f.Sync(), "once")
	require.ErrorIs(t, log.Sync(), unix.EIO)
	require.NoError(t, g.Sync())
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(here + "/" + name)
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, "one\n2wo\nthree\n", read("notes"))
	require.Equal(t, "nobody else wants it", read("alone"))
	require.Equal(t, "first\n", read("log"))

	list := s.branches()
	require.Len(t, list, 1)
	require.Equal(t, 2, list[0].Files)
	require.Equal(t, len("ONEsecond\n"), list[0].Bytes)
	name := list[0].Branch[:5]
	tail, _ := os.ReadFile(away + ".log")
	require.Contains(t, string(tail), "it is kept in branch "+list[0].Branch)
	require.Contains(t, l.run("cagejournal", "branch", "show", name, here), "notes  0-2\n")
	require.Equal(t, "ONE\n2wo\nthree\n", l.run("cagejournal", "branch", "cat", name, here+"/notes"))
	out, err := l.try("cagejournal", "branch", "diff", name, here)
	require.Equal(t, int(cli.ExitDifferences), exitCode(err))
	require.Contains(t, out, "-one\n+ONE\n 2wo\n")
	require.Contains(t, out, "+second\n")

	l.refused(cli.ExitNotFound, "there is no such branch", "cagejournal", "branch", "show", "zz", here)
	l.refused(cli.ExitUsage, "nobody to ask", "cagejournal", "branch", "apply", name, here)
	l.refused(cli.ExitConflict, "notes: it was changed since, last by @", "cagejournal", "branch", "apply", name, here, "-y")
	require.Equal(t, "first\n", read("log"), "all or nothing")
	require.Contains(t, l.run("cagejournal", "branch", "apply", name, here, "-n", "--force"), "over what others wrote")
	require.Len(t, s.branches(), 1)

	l.run("cagejournal", "branch", "apply", name, here, "-y", "--force")
	for _, m := range []string{here, away} {
		b, err := os.ReadFile(m + "/notes")
		require.NoError(t, err)
		require.Equal(t, "ONE\n2wo\nthree\n", string(b), m)
	}
	require.Equal(t, "first\nsecond\n", read("log"))
	require.Empty(t, s.branches())
	l.run("cagejournal", "undo", here, "-y")
	require.Equal(t, "one\n2wo\nthree\n", read("notes"))
	require.Equal(t, "first\n", read("log"))
	for _, f := range []*os.File{f, g, log} {
		f.Close()
	}
	l.umount(away)
	l.umount(here)
	s.stop()
	require.NoError(t, l.verify(export))
}

// TestUndelivered: a mount that must end without its server leaves what programs had
// written in a file, says so, and the server takes it over later.
func TestUndelivered(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export, "--lease-term", "2s")
	s.start()
	m := l.mount(s, "--hard")
	f := openToWrite(t, m+"/file", "old old")
	writeAway(t, func() {
		_, err := f.WriteAt([]byte("old old"), 0)
		require.NoError(t, err)
		l.run("cagefs", "sync", m)
	}, s.kill, s.start, func() error {
		_, err := f.WriteAt([]byte("new"), 4)
		return err
	})
	_, err := l.try("cagefs", "umount", "--force", m)
	require.Equal(t, int(cli.ExitInterrupted), exitCode(err))
	require.ErrorContains(t, err, "not delivered: 1 change, 3 bytes of data of file; what programs had written is kept for: cagejournal branch import ")
	f.Close()
	command := strings.Fields(err.Error()[strings.Index(err.Error(), "cagejournal branch import"):])
	kept := command[len(command)-1]
	require.True(t, strings.HasPrefix(kept, l.dir), "%s", kept)

	l.refused(cli.ExitUnreachable, "", "cagejournal", "branch", "import", kept)
	s.start()
	require.Contains(t, l.run("cagejournal", "branch", "import", kept), "in 1 files\n")
	list := s.branches()
	require.Len(t, list, 1)
	l.refused(cli.ExitConflict, "nobody knows whether the file was changed meanwhile", "cagejournal", "branch", "apply", list[0].Branch, s.addr+":/data", "-y")
	l.run("cagejournal", "branch", "apply", list[0].Branch, s.addr+":/data", "-y", "--force")
	b, err := os.ReadFile(filepath.Join(export, "file"))
	require.NoError(t, err)
	require.Equal(t, "old new", string(b))
	l.refused(cli.ExitDamage, "for a branch", "cagejournal", "branch", "import", filepath.Join(export, "file"), s.addr+":/data")

	require.Contains(t, l.run("cagejournal", "branch", "import", kept), "in 1 files\n", "again")
	l.run("cagejournal", "branch", "drop", s.branches()[0].Branch, s.addr+":/data", "-y")
	require.Empty(t, s.branches())

	// Offline as well.
	s.stop()
	require.Contains(t, l.run("cagejournal", "branch", "import", kept, "--dir", export), "in 1 files\n")
	name := strings.Fields(l.run("cagejournal", "branch", "list", "--dir", export))[0]
	require.Contains(t, l.run("cagejournal", "branch", "show", name, "--dir", export), "file  4-6\n")
	l.run("cagejournal", "branch", "apply", name, "--dir", export, "-y", "--force")
	require.Empty(t, l.run("cagejournal", "branch", "list", "--dir", export))
}
