package differ

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What is told of files, and what is not because file systems differ in it:
//
//   - inode and device numbers: only which names are one file (survey.go);
//   - sizes of directories and all numbers of blocks: their layout;
//   - times of FIFOs: writing sets them or not, as with network file systems;
//   - times that no step has set: they are told as "now". Steps set times that are long past;
//   - the order of names in a listing and of attributes: they are sorted;
//   - where holes are: see seekData;
//   - the position of a descriptor for appending: see seekStep.
//
// Both sides are to be mounted so that reading does not set atime, for when it
// does is a matter of mount options.

const maxXattr = 64 << 10

// describe tells of attributes.
func describe(st *unix.Stat_t) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s %04o %d:%d", typeName(st.Mode), st.Mode&0o7777, st.Uid, st.Gid)
	fmt.Fprintf(&out, " links=%d", st.Nlink)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
		fmt.Fprintf(&out, " size=%d", st.Size)
	case unix.S_IFCHR, unix.S_IFBLK:
		fmt.Fprintf(&out, " rdev=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		fmt.Fprintf(&out, " a=%s m=%s", when(st.Atim), when(st.Mtim))
	}
	return out.String()
}

// when is a time, or "now" for one of the last day or, for a clock that is set back, the next.
func when(ts unix.Timespec) string {
	if age := time.Since(time.Unix(ts.Unix())); age < 24*time.Hour && age > -24*time.Hour {
		return "now"
	}
	return fmt.Sprintf("%d.%09d", ts.Sec, ts.Nsec)
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	}
	return fmt.Sprintf("type%o", mode&unix.S_IFMT)
}

// describeOpen tells what a descriptor has open: attributes, content, position.
func describeOpen(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	out := describe(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return out, nil
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return "", err
	}
	if flags&unix.O_PATH != 0 {
		return out, nil
	}
	pos, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	if err != nil {
		return "", err
	}
	if flags&unix.O_APPEND == 0 {
		out += fmt.Sprintf(" at %d", pos)
	}
	if flags&unix.O_ACCMODE == unix.O_WRONLY {
		return out, nil
	}
	b, err := readAll(fd)
	return out + " " + digest(b), err
}

// readAll reads a file from its beginning, without moving its position.
func readAll(fd int) ([]byte, error) {
	var out bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Pread(fd, buf, int64(out.Len()))
		if err != nil || n == 0 {
			return out.Bytes(), err
		}
		out.Write(buf[:n])
	}
}

// readNames lists a directory to its end, with types.
func readNames(fd int) (string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; { // struct linux_dirent64: ino, off, reclen, type, name
			size := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := bytes.Cut(b[19:size], []byte{0})
			if string(name) != "." && string(name) != ".." {
				names = append(names, fmt.Sprintf("%s:%s", short(string(name)), typeName(uint32(b[18])<<12)))
			}
			b = b[size:]
		}
	}
	slices.Sort(names)
	return strings.Join(names, " "), nil
}

// short is a name, or how long it is.
func short(name string) string {
	if len(name) > 40 {
		return fmt.Sprintf("%.8s…(%d)", name, len(name))
	}
	return strconv.Quote(name)
}

// nameList is what listxattr(2) gave. Attributes that a security module of the
// machine gives to every file are no step's doing.
func nameList(buf []byte, n int, err error) (string, error) {
	if err != nil {
		return "", err
	}
	if len(buf) == 0 { // the question was how long it is
		return fmt.Sprint(n, " bytes"), nil
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	names = slices.DeleteFunc(names, func(name string) bool { return name == "security.selinux" })
	slices.Sort(names)
	return strings.Join(names, " "), nil
}
