package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// failure is what a command that fails must say.
type failure struct {
	args []string
	env  []string // more of it
	code int
	text string // in its one line
}

// expect runs a command that must fail as said: one line, the exit code, soon,
// and no mount that was not there before.
func (l *lab) expect(f failure) {
	l.t.Helper()
	before := mountsBelow(l.dir)
	cmd := l.command(f.args[0], f.args[1:]...)
	cmd.Env = append(cmd.Env, f.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	err := cmd.Run()
	what := strings.Join(f.args, " ")
	assert.Equal(l.t, f.code, exitCode(err), "%s: %v: %s", what, err, &errs)
	assert.Contains(l.t, errs.String(), f.text, what)
	assert.Equal(l.t, 1, strings.Count(errs.String(), "\n"), "%s says more than one line: %s", what, &errs)
	assert.True(l.t, strings.HasPrefix(errs.String(), f.args[0]+": "), "%s: %s", what, &errs)
	assert.Empty(l.t, out.String(), what)
	assert.Less(l.t, time.Since(began), 15*time.Second, what)
	assert.Equal(l.t, before, mountsBelow(l.dir), "%s: a mount is left, or gone", what)
}

// TestFailures goes through what users do wrong and what they find broken.
func TestFailures(t *testing.T) {
	needRoot(t)
	serve := func(l *lab, more ...string) []string {
		return append([]string{"cageserverd", "serve", "--log-level", "error", "--state", l.path("state2")}, more...)
	}
	tests := []struct {
		name string
		// what may start things; it returns what must fail then.
		what func(l *lab, s *server, mnt string) []failure
	}{
		{"flags of a mount", func(l *lab, s *server, mnt string) []failure {
			src := s.addr + ":/data"
			return []failure{
				{args: []string{"cagefs", "mount", src, mnt, "--no-such-flag"}, code: 2, text: "--no-such-flag"},
				{args: []string{"cagefs", "mount", src, mnt, "-o", "sauce"}, code: 2, text: "sauce"},
				{args: []string{"cagefs", "mount", src, mnt, "-o", "soft=soon"}, code: 2, text: "soon"},
				{args: []string{"cagefs", "mount", src}, code: 2, text: "missing argument"},
				{args: []string{"cagefs", "mount", "nonsense", mnt}, code: 2, text: "nonsense"},
				{args: []string{"cagefs", "mount", s.addr + "/data", mnt}, code: 2, text: "not a source"},
				{args: []string{"cagefs", "frobnicate"}, code: 2, text: "frobnicate"},
				{args: []string{"cagefs", "umount", mnt}, code: 3, text: "not a mountpoint"},
				{args: []string{"cagefs", "status", mnt}, code: 3, text: "not a mountpoint"},
				{args: []string{"cagejournal", "log", mnt}, code: 3, text: mnt},
				{args: []string{"cagejournal", "rollback", src + "/x", "--to", "yesterday", "-y"}, code: 2, text: "yesterday"},
			}
		}},
		{"flags of a server", func(l *lab, s *server, mnt string) []failure {
			dir := l.mkdir("other")
			return []failure{
				{args: serve(l), code: 2, text: "--export"},
				{args: serve(l, "--export", dir), code: 2, text: "NAME=DIR"},
				{args: serve(l, "--export", "a/b="+dir), code: 2, text: "a/b"},
				{args: serve(l, "--export", "a="+dir, "--listen", "nowhere"), code: 2, text: "nowhere"},
				{args: serve(l, "--export", "a="+dir, "--listen", "127.0.0.1:0", "--data-ports", "-1"), code: 2, text: "-1"},
				{args: serve(l, "--export", "a="+dir, "--export", "a="+l.mkdir("third")), code: 2, text: "twice"},
				{args: serve(l, "--export", "a="+l.path("missing")), code: 3, text: "does not exist"},
				{args: serve(l, "--export", "a=/etc/passwd"), code: 3, text: "not a directory"},
				{args: serve(l, "--export", "a="+dir, "--export", "b="+l.mkdir("other/in")), code: 4, text: "lies in"},
				{args: serve(l, "--export", "a="+dir, "--export", "b="+dir), code: 4, text: "already exported"},
				{args: []string{"cageserverd", "recover", l.path("missing")}, code: 3, text: l.path("missing")},
			}
		}},
		{"what is mounted", func(l *lab, s *server, mnt string) []failure {
			require.NoError(l.t, os.WriteFile(l.path("export", "file"), nil, 0o644))
			return []failure{
				{args: []string{"cagefs", "mount", s.addr + ":/none", mnt}, code: 3, text: `no export named "none"; there are: data`},
				{args: []string{"cagefs", "mount", s.addr + ":/data/none", mnt}, code: 3, text: "no such file or directory"},
				{args: []string{"cagefs", "mount", s.addr + ":/data/file", mnt}, code: 3, text: "not a directory"},
				{args: []string{"cagefs", "mount", s.addr + ":/data@label:none", mnt}, code: 3, text: "none"},
			}
		}},
		{"mountpoints", func(l *lab, s *server, mnt string) []failure {
			src := s.addr + ":/data"
			busy := l.mount(s)
			file := l.path("file")
			require.NoError(l.t, os.WriteFile(file, nil, 0o644))
			return []failure{
				{args: []string{"cagefs", "mount", src, l.path("missing")}, code: 3, text: "does not exist"},
				{args: []string{"cagefs", "mount", src, file}, code: 3, text: "not a directory"},
				{args: []string{"cagefs", "mount", src, busy}, code: 7, text: "mounted there already"},
			}
		}},
		{"in use", func(l *lab, s *server, mnt string) []failure {
			m := l.mount(s)
			cwd := exec.Command("sleep", "60")
			cwd.Dir = m
			require.NoError(l.t, cwd.Start())
			l.t.Cleanup(func() { cwd.Process.Kill(); cwd.Wait() })
			return []failure{{args: []string{"cagefs", "umount", m}, code: 7, text: fmt.Sprintf("in use by sleep (%d)", cwd.Process.Pid)}}
		}},
		{"keys", func(l *lab, s *server, mnt string) []failure {
			src := s.addr + ":/data"
			stranger := []string{"XDG_CONFIG_HOME=" + l.mkdir("stranger")}
			// The keys of another server, which once ran on that port.
			other := newLab(l.t, "")
			s2 := other.newServer(other.mkdir("export"))
			s2.start()
			s2.stop()
			of2 := []string{"XDG_CONFIG_HOME=" + other.path("config")}
			return []failure{
				{args: []string{"cagefs", "mount", src, mnt}, env: stranger, code: 8, text: s.addr},
				{args: []string{"cagefs", "mount", src, mnt}, env: of2, code: 8, text: s.addr},
				{args: []string{"cagejournal", "log", src}, env: stranger, code: 8, text: s.addr},
			}
		}},
		{"nobody there", func(l *lab, s *server, mnt string) []failure {
			silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, says nothing
			require.NoError(l.t, err)
			l.t.Cleanup(func() { silent.Close() })
			chatty := talker(l.t)
			return []failure{
				{args: []string{"cagefs", "mount", freeAddr(l.t) + ":/data", mnt}, code: 10, text: "refused"},
				{args: []string{"cagefs", "mount", silent.Addr().String() + ":/data", mnt, "-o", "soft=1s"}, code: 10, text: "no answer for 1"},
				{args: []string{"cagefs", "mount", chatty + ":/data", mnt}, code: 10, text: "not cageserverd"},
				{args: []string{"cagefs", "mount", "no-such-host.invalid:/data", mnt}, code: 10, text: "no-such-host.invalid"},
				{args: []string{"cagejournal", "log", freeAddr(l.t) + ":/data"}, code: 10, text: "refused"},
			}
		}},
		{"one server each", func(l *lab, s *server, mnt string) []failure {
			dir := l.mkdir("other")
			export := strings.TrimPrefix(s.args[2], "data=")
			return []failure{
				{args: serve(l, "--export", "a="+dir, "--listen", s.addr), code: 7, text: "in use"},
				{args: serve(l, "--export", "a="+dir, "--listen", nextPort(l.t, s.addr, -1)), code: 7, text: "data port 1 is in use"},
				{args: serve(l, "--export", "a="+dir, "--listen", "127.0.0.1:0", "--state", l.path("server")), code: 7, text: l.path("server")},
				{args: serve(l, "--export", "a="+export, "--listen", "127.0.0.1:0"), code: 7, text: "export a"},
				{args: []string{"cageserverd", "recover", export}, code: 7, text: export},
				{args: []string{"cagejournal", "rollback", "x", "--dir", export, "--to", "@1", "-y"}, code: 7, text: export},
			}
		}},
		{"a copied journal", func(l *lab, s *server, mnt string) []failure {
			require.NoError(l.t, os.WriteFile(l.path("export", "file"), []byte("x"), 0o644))
			s.stop()
			command(l.t, "cp", "-a", l.path("export"), l.path("copy"))
			return []failure{
				{args: serve(l, "--export", "a="+l.path("copy"), "--listen", "127.0.0.1:0"), code: 4, text: "copied"},
				{args: []string{"cageserverd", "recover", l.path("copy")}, code: 4, text: "copied"},
			}
		}},
		{"a damaged journal", func(l *lab, s *server, mnt string) []failure {
			m := l.mount(s)
			for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
				require.NoError(l.t, os.WriteFile(filepath.Join(m, name), []byte(name), 0o644))
				l.run("cagefs", "sync", m)
			}
			s.kill() // or the checkpoint would need nothing of it
			flip(l.t, l.path("export", ".cage", "wal"))
			out := []failure{
				{args: serve(l, "--export", "a="+l.path("export"), "--listen", "127.0.0.1:0"), code: 5, text: "damage"},
				{args: []string{"cageserverd", "recover", l.path("export")}, code: 5, text: "damage"},
				{args: []string{"cagejournal", "verify", "--dir", l.path("export")}, code: 5, text: "damage"},
			}
			l.t.Cleanup(func() { detach(l.t, m) })
			return out
		}},
		{"a newer journal", func(l *lab, s *server, mnt string) []failure {
			s.stop()
			newer(l.t, l.path("export", ".cage", "wal"))
			return []failure{
				{args: serve(l, "--export", "a="+l.path("export"), "--listen", "127.0.0.1:0"), code: 11, text: "version 3, this program knows 2"},
				{args: []string{"cagejournal", "verify", "--dir", l.path("export")}, code: 11, text: "version 3, this program knows 2"},
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "")
			s := l.newServer(l.mkdir("export"))
			s.start()
			mnt := l.mkdir("mnt")
			for _, f := range tt.what(l, s, mnt) {
				l.expect(f)
			}
			require.Empty(t, names(t, mnt))
		})
	}
}

// detach takes a mount away that can deliver nothing any more.
func detach(t testing.TB, point string) {
	t.Helper()
	require.NoError(t, unix.Unmount(point, unix.MNT_DETACH))
}

// talker is a server that speaks another protocol.
func talker(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("SSH-2.0-OpenSSH_10.0\r\n"))
			c.Close()
		}
	}()
	return ln.Addr().String()
}

// segment is the oldest segment of a log, and where its zeros begin.
func segment(t testing.TB, wal string) (path string, b []byte, end int) {
	t.Helper()
	list, err := filepath.Glob(wal + "/*.wal")
	require.NoError(t, err)
	require.NotEmpty(t, list)
	b, err = os.ReadFile(list[0])
	require.NoError(t, err)
	return list[0], b, len(bytes.TrimRight(b, "\x00"))
}

// flip changes a bit in the middle of what a log holds.
func flip(t testing.TB, wal string) {
	t.Helper()
	path, b, end := segment(t, wal)
	b[4096+(end-4096)/2] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

// newer makes a log look as if a later version had written it.
func newer(t testing.TB, wal string) {
	t.Helper()
	path, b, _ := segment(t, wal)
	b[12]++ // the format version, and its checksum: see journal/record
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:4096], crc32.MakeTable(crc32.Castagnoli)))
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

// TestExportVanishes: somebody removes the exported directory while it is in
// use. Clients get errors, nothing hangs, and the mount can be left.
func TestExportVanishes(t *testing.T) {
	needRoot(t)
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	m := l.mount(s, "--soft", "3s")
	require.NoError(t, os.WriteFile(m+"/file", make([]byte, 1<<20), 0o644))
	l.run("cagefs", "sync", m)
	require.NoError(t, os.RemoveAll(l.path("export")))

	for _, args := range [][]string{{"touch", m + "/new"}, {"mkdir", m + "/dir"}, {"sh", "-c", "echo x >" + m + "/echo"}, {"cp", "-r", goSource(t) + "/sort", m}} {
		out, err := exec.Command("timeout", append([]string{"10"}, args...)...).CombinedOutput()
		require.Error(t, err, "%s", args)
		require.NotEqual(t, 124, exitCode(err), "%s hangs: %s", args, out)
	}
	for _, args := range [][]string{{"ls", m}, {"cat", m + "/file"}, {"df", m}} { // in vain or not
		_, err := exec.Command("timeout", append([]string{"10"}, args...)...).CombinedOutput()
		require.NotEqual(t, 124, exitCode(err), "%s hangs", args)
	}
	l.umount(m) // all was delivered once
	l.expect(failure{args: []string{"cagefs", "mount", s.addr + ":/data", l.mkdir("again")}, code: 3, text: "the directory of data is gone on the server"})
	require.NoError(t, s.cmd.Process.Signal(unix.SIGTERM))
	err := s.cmd.Wait()
	s.cmd = nil
	require.Equal(t, 3, exitCode(err), "what it could not close is no success")
}

// TestDiskFull fills a small file system: whoever writes is told, all else goes
// on, and so does writing once there is room.
func TestDiskFull(t *testing.T) {
	l := newLab(t, "")
	disk := l.ext4(96 << 20)
	require.NoError(t, os.Mkdir(disk+"/export", 0o755))
	require.NoError(t, os.WriteFile(disk+"/ballast", bytes.Repeat([]byte{1}, 20<<20), 0o600))
	s := l.newServer(disk + "/export")
	s.start()
	m := l.mount(s)

	precious := bytes.Repeat([]byte("precious"), 64<<10)
	write := func(name string, b []byte) error {
		f, err := os.Create(filepath.Join(m, name))
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		return errors.Join(err, f.Sync(), f.Close())
	}
	require.NoError(t, write("precious", precious))
	var full error
	durable := []string{"precious"}
	for i := 0; full == nil; i++ {
		require.Less(t, i, 200, "the disk is never full")
		name := "filler" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		if full = write(name, bytes.Repeat([]byte{byte(i)}, 1<<20)); full == nil {
			durable = append(durable, name)
		}
	}
	require.ErrorIs(t, full, unix.ENOSPC)
	t.Logf("full after %d files of 1 MiB", len(durable)-1)
	for i := range 6 { // to the last byte: without fsync the writer is told, too
		name := filepath.Join(m, "last"+string(rune('0'+i)))
		want := bytes.Repeat([]byte{2}, 4<<20)
		if err := os.WriteFile(name, want, 0o644); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			continue
		}
		got, err := os.ReadFile(name)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "a write that succeeded has not failed later")
	}
	large := l.path("large")
	require.NoError(t, os.WriteFile(large, make([]byte, 90<<20), 0o600))
	said, err := exec.Command("cp", large, m+"/large").CombinedOutput()
	require.Error(t, err, "cp does not succeed with half a file")
	require.Contains(t, string(said), "No space left on device")
	l.run("cagefs", "sync", m)

	// It is a mount like any other.
	b, err := os.ReadFile(m + "/precious")
	require.NoError(t, err)
	require.True(t, bytes.Equal(precious, b), "what was fsynced is there")
	command(t, "ls", "-lR", m)
	command(t, "df", m)
	for _, name := range durable[1:5] {
		require.NoError(t, os.Remove(filepath.Join(m, name)), "removing works on a full disk")
	}
	for _, name := range durable[5:] {
		info, err := os.Stat(filepath.Join(m, name))
		require.NoError(t, err)
		require.EqualValues(t, 1<<20, info.Size())
	}

	// With room again, made by removing files or otherwise, things go on without anybody's help.
	for i, name := range []string{"after", "after2"} {
		require.Eventually(t, func() bool {
			err = write(name, precious)
			return err == nil
		}, 20*time.Second, 100*time.Millisecond, "%s: %v", name, err)
		if i == 0 {
			require.NoError(t, os.Remove(disk+"/ballast"))
		}
	}
	for err := error(unix.ENOSPC); err != nil; { // each file's failure is told once
		if _, err = l.try("cagefs", "sync", m); err != nil {
			require.ErrorContains(t, err, "no space left on device")
		}
	}
	l.umount(m)
	s.stop()
	l.run("cagejournal", "verify", "--full", "--dir", disk+"/export")
	b, err = os.ReadFile(disk + "/export/after2")
	require.NoError(t, err)
	require.True(t, bytes.Equal(precious, b))
}
