package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// fsType is shown as the type of a mount; fsSubtype is what fusermount3 calls it.
const (
	fsSubtype = "cage"
	fsType    = "fuse." + fsSubtype
)

// mountpoint resolves and checks where to mount: absolute, without symlinks, a
// directory. Errors: status.NotFound, NotDir, Busy.
func mountpoint(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", status.Wrap(err, "mount", path)
	}
	if err := unoccupied(abs); err != nil { // first, for what is mounted there may not answer
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return "", status.Newf(status.Busy, "mount", abs, "a dead mount is in the way; remove it with: umount -l %s", abs)
	case errors.Is(err, os.ErrNotExist):
		return "", status.Newf(status.NotFound, "mount", abs, "the mountpoint does not exist")
	case err != nil:
		return "", status.Wrap(err, "mount", abs)
	}
	if err := unoccupied(real); err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", status.Wrap(err, "mount", real)
	}
	if !info.IsDir() {
		return "", status.Newf(status.NotDir, "mount", real, "the mountpoint is not a directory")
	}
	return real, nil
}

// unoccupied refuses a path on which Cage is mounted already.
func unoccupied(path string) error {
	if m, ok := mountedAt(path); ok && m.fsType == fsType {
		return status.Newf(status.Busy, "mount", path, "%s is mounted there already", m.source)
	}
	return nil
}

// mountInfo is a line of /proc/self/mountinfo.
type mountInfo struct {
	dev    string // MAJOR:MINOR
	point  string
	fsType string
	source string
}

// mountedAt returns the topmost mount on a path. It does not touch the path.
func mountedAt(path string) (mountInfo, bool) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountInfo{}, false
	}
	return findMount(b, path)
}

// findMount looks through the text of mountinfo, see proc(5): later lines are on top.
func findMount(info []byte, path string) (found mountInfo, ok bool) {
	for line := range strings.Lines(string(info)) {
		head, tail, cut := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, t := strings.Fields(head), strings.Fields(tail)
		if !cut || len(f) < 6 || len(t) < 2 {
			continue
		}
		if point := unescape(f[4]); point == path {
			found, ok = mountInfo{dev: f[2], point: point, fsType: t[0], source: unescape(t[1])}, true
		}
	}
	return found, ok
}

// unescape undoes the kernel's \ooo for blanks and backslashes.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// attach mounts and returns the descriptor of /dev/fuse. Root does it itself,
// others (and a root without the capability) with fusermount3.
func attach(point string, o *Options) (fd int, err error) {
	if os.Geteuid() == 0 {
		fd, err = attachDirect(point, o)
		if !errors.Is(err, unix.EPERM) {
			return fd, err
		}
	}
	return attachHelped(point, o)
}

// attachDirect is mount(2).
func attachDirect(point string, o *Options) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, noDevice(err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,default_permissions,max_read=%d",
		fd, uint32(proto.ModeDir), os.Geteuid(), os.Getegid(), maxRequest)
	if o.AllowOther {
		data += ",allow_other"
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(o.Device, point, fsType, flags, data); err != nil {
		unix.Close(fd)
		return -1, status.Newf(status.Of(err), "mount", point, "mount(2): %w", err)
	}
	return fd, nil
}

// attachHelped lets fusermount3 mount and takes the descriptor from it.
func attachHelped(point string, o *Options) (int, error) {
	bin, err := fusermount()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, status.Wrap(err, "mount", point)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer ours.Close()
	opts := []string{"nosuid", "nodev", "default_permissions", "subtype=" + fsSubtype,
		"fsname=" + escapeOption(o.Device), fmt.Sprintf("max_read=%d", maxRequest)}
	if o.AllowOther {
		opts = append(opts, "allow_other")
	}
	if o.ReadOnly {
		opts = append(opts, "ro")
	}
	cmd := exec.Command(bin, "-o", strings.Join(opts, ","), "--", point)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		return -1, status.Newf(helperCode(out), "mount", point, "fusermount3: %s", helperText(out, err))
	}
	fd, err := receive(ours)
	if err != nil {
		detach(context.Background(), point, true)
		return -1, status.Newf(status.Internal, "mount", point, "fusermount3 sent no descriptor: %w", err)
	}
	return fd, nil
}

// receive takes a descriptor from a socket.
func receive(from *os.File) (int, error) {
	c, err := net.FileConn(from)
	if err != nil {
		return -1, err
	}
	defer c.Close()
	var data [8]byte
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(data[:], control) // sets close-on-exec
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.Join(err, fmt.Errorf("%d control messages", len(messages)))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(err, fmt.Errorf("%d descriptors", len(fds)))
	}
	return fds[0], nil
}

// detach unmounts; lazily it succeeds while files are open. What is not mounted
// (any more) is no error. Errors: status.Busy.
func detach(ctx context.Context, point string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(point, flags)
	if !errors.Is(err, unix.EPERM) {
		return unmountError(err, point)
	}
	bin, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", "--", point}
	if lazy {
		args = []string{"-u", "-z", "--", point}
	}
	if out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput(); err != nil {
		return status.Newf(helperCode(out), "umount", point, "fusermount3: %s", helperText(out, err))
	}
	return nil
}

func unmountError(err error, point string) error {
	switch {
	case err == nil, errors.Is(err, unix.EINVAL):
		return nil
	case errors.Is(err, unix.EBUSY):
		return status.Newf(status.Busy, "umount", point, "in use")
	}
	return status.Wrap(err, "umount", point)
}

func fusermount() (string, error) {
	bin, err := exec.LookPath("fusermount3")
	if err != nil {
		return "", status.Newf(status.Unsupported, "mount", "", "only root can mount without fusermount3 (package fuse3)")
	}
	return bin, nil
}

// helperCode reads from what fusermount3 printed what it meant; it exits with 1 whatever it is.
func helperCode(out []byte) status.Code {
	for text, code := range map[string]status.Code{
		"Device or resource busy":   status.Busy,
		"Permission denied":         status.Access,
		"Operation not permitted":   status.NotOwner,
		"No such file or directory": status.NotFound,
		"Not a directory":           status.NotDir,
	} {
		if bytes.Contains(out, []byte(text)) {
			return code
		}
	}
	return status.NotOwner
}

// helperText is the last line that fusermount3 printed.
func helperText(out []byte, err error) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return strings.TrimPrefix(last, "fusermount3: ")
	}
	return err.Error()
}

// escapeOption protects what separates options.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}

func noDevice(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return status.Newf(status.Unsupported, "mount", "/dev/fuse", "the kernel module fuse is not loaded")
	}
	return status.Wrap(err, "mount", "/dev/fuse")
}
