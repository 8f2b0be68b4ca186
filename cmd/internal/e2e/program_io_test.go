package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestProgramFio writes with fio in every way that programs write in, several jobs
// at once, each block with its checksum. fio reads all back, through the mount that
// wrote it, through another one, and from the server's disk.
func TestProgramFio(t *testing.T) {
	onlyFull(t)
	w := newWorkshop(t, map[string]string{"fio": "fio"})
	other := w.mount(w.srv)
	for _, engine := range []string{"psync", "libaio", "mmap"} {
		for _, direct := range []string{"0", "1"} {
			if engine == "mmap" && direct == "1" {
				continue // there is no such thing
			}
			for _, rw := range []string{"write", "randwrite", "rw", "randrw"} {
				name := strings.Join([]string{engine, direct, rw}, "-")
				fio := func(dir string, args ...string) {
					t.Helper()
					w.ask(task{args: append([]string{"fio", "--name=job", "--directory=" + filepath.Join(dir, name), "--ioengine=" + engine,
						"--direct=" + direct, "--rw=" + rw, "--bsrange=512-64k", "--blockalign=512", "--size=24m", "--numjobs=3", "--iodepth=8",
						"--verify=crc32c", "--verify_fatal=1", "--group_reporting", "--end_fsync=1"}, args...)})
				}
				w.compare("fio "+name, func(dir string) {
					require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
					fio(dir, "--do_verify=1")
				})
				for _, root := range []string{other, w.export} {
					fio(filepath.Join(root, "ground"), "--verify_only")
				}
				require.NoError(t, os.RemoveAll(filepath.Join(w.local, name)))
			}
		}
	}
	w.umount(other)
	w.finish(nil)
}

// stressors are the parts of stress-ng that work on files.
var stressors = []string{"hdd", "dentry", "dir", "dirdeep", "filename", "rename", "link", "symlink", "chmod", "chown", "utime", "fallocate",
	"seek", "fstat", "getdent", "flock", "lockf", "copy-file", "sync-file", "xattr", "touch"}

// TestProgramStress runs what stress-ng has for file systems, two of each, as root and
// as a user. With --verify it looks itself whether calls do what they should.
func TestProgramStress(t *testing.T) {
	onlyFull(t)
	w := newWorkshop(t, map[string]string{"stress-ng": "stress-ng", "unshare": "util-linux"})
	run := func(who, stressor string, seconds int, user *syscall.Credential) {
		t.Run(who+"/"+stressor, func(t *testing.T) {
			dir := filepath.Join(w.ground, who+"-"+stressor)
			require.NoError(t, os.Mkdir(dir, 0o755))
			var args []string
			temp := dir
			switch {
			case user != nil:
				require.NoError(t, os.Chown(dir, int(user.Uid), int(user.Gid)))
			case stressor == "getdent":
				// It lists all that is under /tmp, too. What it is to see there is the mount.
				args, temp = []string{"unshare", "--mount", "sh", "-c", `mount --bind . /tmp && cd /tmp && exec "$@"`, "sh"}, "/tmp"
			}
			args = append(args, "stress-ng", "--"+stressor, "2", "--temp-path", temp, "--timeout", fmt.Sprint(seconds, "s"),
				"--verify", "--metrics-brief", "--no-rand-seed",
				"--hdd-bytes", "32m", "--fallocate-bytes", "8m", "--seek-size", "8m", "--sync-file-bytes", "8m", "--copy-file-bytes", "128m")
			start := time.Now()
			out := w.ask(task{args: args, user: user, dir: dir})
			require.NotContains(t, out, "stress-ng: fail")
			m := regexp.MustCompile(`\] ` + stressor + ` +(\d+)`).FindStringSubmatch(out)
			require.NotNil(t, m, "%s", out)
			t.Logf("%s operations in %.1f s", m[1], time.Since(start).Seconds())
		})
	}
	for _, s := range stressors {
		run("root", s, 12, nil)
	}
	for _, s := range stressors {
		if s != "getdent" { // needs to mount, see above
			run("nobody", s, 5, credential(t, "nobody"))
		}
	}
	w.finish(nil)
}

// TestProgramDbench runs the load of a file server for a minute, without its network.
// dbench checks what each of its calls answers.
func TestProgramDbench(t *testing.T) {
	onlyFull(t)
	w := newWorkshop(t, map[string]string{"dbench": "dbench"})
	w.compare("dbench", func(dir string) {
		out := w.in(dir, "dbench", "-D", dir, "-t", fmt.Sprint(full(5, 60)), "4")
		t.Log(regexp.MustCompile(`Throughput .*`).FindString(out))
		require.NotRegexp(t, `(?i)fail|error`, out)
	})
	w.finish(nil)
}
