package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	hist "cagefs.dev/cage/cmd/internal/history"
)

// The directory of a round, which linearRound makes, has
//
//	f0      a file of slots, whose size stays
//	f1      one whose size changes
//	z       one that is appended to; only its size counts
//	a0 a1   files whose modes and times change
//	l lk/   a file, and a directory with other names of it
//	k k2    files that are locked, with fcntl and with flock; a slot each
//	d0 d1   directories: n0 n1 n2 n3 are files, m0 m1 directories; they come and go
//	o/      what only a program on the server changes: a slot of f, the time of a, the names x0 x1
//
// A slot has 8 bytes, which are read and written at once; two lie in each page.
const slots = 6

func slotAt(i int) int64 { return int64(i) * 2048 }

// operation is a sort of operation, and how often it is done among all.
type operation struct {
	name   string
	weight int
	do     func(h *historian) error
}

var mountOperations = []operation{
	{"read a slot", 24, (*historian).readSlot},
	{"write", 16, (*historian).write},
	{"truncate", 4, (*historian).truncate},
	{"append", 5, (*historian).append},
	{"ask for a size", 10, (*historian).readSize},
	{"change attributes", 5, (*historian).setAttributes},
	{"ask for attributes", 7, (*historian).readAttributes},
	{"look up a name", 14, (*historian).readName},
	{"make a file", 8, (*historian).makeFile},
	{"unlink", 6, (*historian).unlink},
	{"rename", 6, (*historian).rename},
	{"put a file in place", 5, (*historian).replace},
	{"make or remove a directory", 7, (*historian).directory},
	{"list", 7, (*historian).list},
	{"link and unlink", 6, (*historian).link},
	{"ask for links", 6, (*historian).readLinks},
	{"lock", 8, (*historian).lock},
	{"look at what the server's programs do", 10, (*historian).readLocal},
}

var lockOperations = []operation{
	{"lock", 8, (*historian).lock},
	{"read a slot", 3, (*historian).readSlot},
}

var localOperations = []operation{
	{"write", 4, (*historian).writeLocal},
	{"look up a name", 4, (*historian).readName},
	{"list", 2, (*historian).list},
	{"ask for attributes", 2, (*historian).statAttributes},
}

// pick returns one of some names.
func (h *historian) pick(names ...string) string { return names[h.rand.IntN(len(names))] }

// with opens a path, sometimes, else it takes what is open.
func (h *historian) with(name string, flags int, use func(fd int) error) error {
	if h.rand.IntN(3) > 0 {
		return use(h.fds[name])
	}
	fd, err := unix.Open(h.path(name), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return use(fd)
}

// readValue reads a slot; behind the end of a file there is 0.
func readValue(fd int, at int64) (int64, error) {
	var b [8]byte
	n, err := unix.Pread(fd, b[:], at)
	if err == nil && n%8 != 0 {
		err = fmt.Errorf("half a slot: %d bytes", n)
	}
	return int64(binary.LittleEndian.Uint64(b[:])), err
}

func (h *historian) readSlot() error {
	name, slot := h.pick("f0", "f1"), h.rand.IntN(slots)
	var v int64
	read := func() error {
		return h.with(name, unix.O_RDONLY, func(fd int) (err error) {
			v, err = readValue(fd, slotAt(slot))
			return err
		})
	}
	note := "pread"
	if name == "f0" && h.rand.IntN(3) == 0 {
		note, read = "mapped", func() (err error) {
			defer func() {
				if recover() != nil {
					err = unix.EIO // SIGBUS
				}
			}()
			v = int64(binary.LittleEndian.Uint64(h.mapped[slotAt(slot):]))
			return nil
		}
	}
	r, err := h.timed(note, read)
	if err == nil {
		h.add(r, hist.Register, fmt.Sprintf("%s slot %d", name, slot), hist.Read, v)
	}
	return err
}

// write writes one slot, or all of some pages.
func (h *historian) write() error {
	name, slot, n, v := h.pick("f0", "f1"), h.rand.IntN(slots), 1, h.value()
	b := binary.LittleEndian.AppendUint64(nil, uint64(v))
	if h.rand.IntN(3) == 0 {
		slot = slot / 2 * 2
		n = 2 * (1 + h.rand.IntN((slots-slot)/2))
		b = make([]byte, slotAt(n))
		for i := range n {
			binary.LittleEndian.PutUint64(b[slotAt(i):], uint64(v))
		}
	}
	r, err := h.timed(fmt.Sprintf("pwrite %d at %d", len(b), slotAt(slot)), func() error {
		return h.with(name, unix.O_WRONLY, func(fd int) error { _, err := unix.Pwrite(fd, b, slotAt(slot)); return err })
	})
	if err != nil {
		return err
	}
	for i := slot; i < slot+n; i++ {
		h.add(r, hist.Register, fmt.Sprintf("%s slot %d", name, i), hist.Write, v)
	}
	if name == "f1" {
		h.add(r, hist.Size, name, hist.Extend, slotAt(slot)+int64(len(b)))
	}
	return nil
}

// truncate cuts off slots, or adds empty ones.
func (h *historian) truncate() error {
	if h.rand.IntN(3) == 0 {
		r, err := h.timed("ftruncate", func() error { return unix.Ftruncate(h.fds["z"], 64) })
		if err == nil {
			h.add(r, hist.Size, "z", hist.Truncate, 64)
		}
		return err
	}
	slot := h.rand.IntN(slots + 1)
	r, err := h.timed(fmt.Sprint("truncate ", slotAt(slot)), func() error {
		if h.rand.IntN(2) == 0 {
			return unix.Truncate(h.path("f1"), slotAt(slot))
		}
		return unix.Ftruncate(h.fds["f1"], slotAt(slot))
	})
	if err != nil {
		return err
	}
	h.add(r, hist.Size, "f1", hist.Truncate, slotAt(slot))
	for i := slot; i < slots; i++ {
		h.add(r, hist.Register, fmt.Sprintf("f1 slot %d", i), hist.Write, 0)
	}
	return nil
}

func (h *historian) append() error {
	r, err := h.timed("write, O_APPEND", func() error {
		return h.with("z", unix.O_WRONLY|unix.O_APPEND, func(fd int) error { _, err := unix.Write(fd, make([]byte, 8)); return err })
	})
	if err == nil {
		h.add(r, hist.Size, "z", hist.Append, 8)
	}
	return err
}

// readSize asks for a size. Not with SEEK_END: what that shows while others and this mount write
// is what the kernel has at last, which need not be what it has just been told (docs/consistency.md).
func (h *historian) readSize() error {
	name := h.pick("f1", "z")
	var st unix.Stat_t
	r, err := h.stat(name, &st)
	if err == nil {
		h.add(r, hist.Size, name, hist.Read, st.Size)
	}
	return err
}

// stat asks for the attributes of a file in one way or another.
func (h *historian) stat(name string, st *unix.Stat_t) (hist.Record, error) {
	if h.rand.IntN(2) == 0 {
		return h.timed("fstat", func() error { return unix.Fstat(h.fds[name], st) })
	}
	return h.timed("lstat", func() error { return unix.Lstat(h.path(name), st) })
}

// eraOfTimes is where the times begin that files are given.
const eraOfTimes = int64(1e18)

func (h *historian) setAttributes() error {
	name := h.pick("a0", "a1")
	v := h.value()
	if h.rand.IntN(2) == 0 {
		perm := uint32(h.Proc*37+int(h.last)) % 0o1000
		r, err := h.timed("chmod", func() error { return unix.Chmod(h.path(name), perm) })
		if err == nil {
			h.add(r, hist.Register, name+" mode", hist.Write, int64(perm))
		}
		return err
	}
	r, err := h.timed("utimensat", func() error { return setTimes(h.path(name), eraOfTimes+v) })
	if err == nil {
		h.add(r, hist.Register, name+" mtime", hist.Write, eraOfTimes+v)
	}
	return err
}

func setTimes(path string, at int64) error {
	ts := unix.NsecToTimespec(at)
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, 0)
}

func (h *historian) readAttributes() error {
	name := h.pick("a0", "a1")
	var st unix.Stat_t
	r, err := h.stat(name, &st)
	h.addAttributes(r, err, name, &st)
	return err
}

func (h *historian) statAttributes() error {
	name := h.pick("a0", "a1")
	var st unix.Stat_t
	r, err := h.timed("lstat", func() error { return unix.Lstat(h.path(name), &st) })
	h.addAttributes(r, err, name, &st)
	return err
}

func (h *historian) addAttributes(r hist.Record, err error, name string, st *unix.Stat_t) {
	if err == nil {
		h.add(r, hist.Register, name+" mode", hist.Read, int64(st.Mode&0o7777))
		h.add(r, hist.Register, name+" mtime", hist.Read, st.Mtim.Nano())
	}
}

func (h *historian) pickName() string {
	return h.pick("d0", "d1") + "/" + h.pick("n0", "n1", "n2", "n3", "m0", "m1")
}

func (h *historian) pickFile() string {
	return h.pick("d0", "d1") + "/" + h.pick("n0", "n1", "n2", "n3")
}

// readName asks which file a name is. Programs on the server know the files by other numbers.
func (h *historian) readName() error {
	name := h.pickName()
	var st unix.Stat_t
	call, look := "lstat", func() error { return unix.Lstat(h.path(name), &st) }
	fd := -1
	switch h.rand.IntN(3) {
	case 0:
		call, look = "access", func() error { return unix.Access(h.path(name), unix.F_OK) }
	case 1:
		call, look = "open", func() (err error) {
			fd, err = unix.Open(h.path(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			return err
		}
	}
	r, err := h.timed(call, look)
	if fd >= 0 {
		err = errors.Join(unix.Fstat(fd, &st), unix.Close(fd))
	}
	file := int64(st.Ino)
	switch {
	case errors.Is(err, unix.ENOENT):
		file, err = hist.Absent, nil
	case call == "access" || h.Local:
		file = hist.Unnamed
	}
	if err == nil {
		h.add(r, hist.Name, name, hist.Read, file)
	}
	return err
}

func (h *historian) makeFile() error {
	name, fd := h.pickFile(), -1
	r, err := h.timed("O_EXCL", func() (err error) {
		fd, err = unix.Open(h.path(name), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		return err
	})
	file := int64(hist.Unnamed)
	if fd >= 0 {
		var st unix.Stat_t
		if err := errors.Join(unix.Fstat(fd, &st), unix.Close(fd)); err != nil {
			return err
		}
		file = int64(st.Ino)
	}
	return h.addName(r, err, name, hist.Make, file)
}

func (h *historian) unlink() error {
	name := h.pickFile()
	r, err := h.timed("unlink", func() error { return unix.Unlink(h.path(name)) })
	return h.addName(r, err, name, hist.Take, 0)
}

// rename renames a file to a name that no other mount renames to: two mounts that
// do the same rename at the same time may both be told that they did it. The kernel
// looks up the old name, then the new one, and where both are one file by then it
// calls the rename done without asking.
func (h *historian) rename() error {
	from, to := h.pickFile(), fmt.Sprintf("%s/n%d", h.pick("d0", "d1"), h.Mount)
	if from == to {
		return nil
	}
	r, err := h.timed("rename "+from+" "+to, func() error { return unix.Rename(h.path(from), h.path(to)) })
	if err == nil {
		h.add(r, hist.Name, to, hist.Put, hist.Unnamed)
	}
	return h.addName(r, err, from, hist.Take, 0)
}

// replace makes a file under a name of its own and puts it where it belongs, by rename or link.
func (h *historian) replace() error {
	h.last++
	own, name := h.path(fmt.Sprintf("own%d.%d", h.Proc, h.last)), h.pickFile()
	fd, err := unix.Open(own, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Close(fd)); err != nil {
		return err
	}
	if h.rand.IntN(2) == 0 {
		r, err := h.timed("rename", func() error { return unix.Rename(own, h.path(name)) })
		return h.addName(r, err, name, hist.Put, int64(st.Ino))
	}
	r, err := h.timed("link", func() error { return unix.Link(own, h.path(name)) })
	return errors.Join(h.addName(r, err, name, hist.Make, int64(st.Ino)), unix.Unlink(own))
}

func (h *historian) directory() error {
	name := h.pick("d0", "d1") + "/" + h.pick("m0", "m1")
	if h.rand.IntN(2) == 0 {
		r, err := h.timed("mkdir", func() error { return unix.Mkdir(h.path(name), 0o755) })
		return h.addName(r, err, name, hist.Make, hist.Unnamed)
	}
	r, err := h.timed("rmdir", func() error { return unix.Rmdir(h.path(name)) })
	return h.addName(r, err, name, hist.Take, 0)
}

// list reads a directory to its end and records what it says of each name.
func (h *historian) list() error {
	dir := h.pick("d0", "d1")
	names := map[string]bool{}
	r, err := h.timed("getdents", func() error {
		return h.with(dir, unix.O_RDONLY, func(fd int) error { return readNames(fd, names) })
	})
	if err != nil {
		return err
	}
	for _, name := range []string{"n0", "n1", "n2", "n3", "m0", "m1"} {
		file := int64(hist.Absent)
		if names[name] {
			file = hist.Unnamed
		}
		h.add(r, hist.Name, dir+"/"+name, hist.Read, file)
	}
	return nil
}

// readNames reads a directory from its beginning.
func readNames(fd int, names map[string]bool) error {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return err
	}
	for buf := make([]byte, 8192); ; {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		_, _, found := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range found {
			names[name] = true
		}
	}
}

// link adds a name of l that only this process knows, or removes one.
func (h *historian) link() error {
	if n := len(h.links); n > 2 || n > 0 && h.rand.IntN(2) == 0 {
		r, err := h.timed("unlink", func() error { return unix.Unlink(h.path(h.links[0])) })
		if err == nil {
			h.links = h.links[1:]
			h.add(r, hist.Links, "l", hist.Add, -1)
		}
		return err
	}
	h.last++
	name := fmt.Sprintf("lk/%d.%d", h.Proc, h.last)
	r, err := h.timed("link", func() error { return unix.Link(h.path("l"), h.path(name)) })
	if err == nil {
		h.links = append(h.links, name)
		h.add(r, hist.Links, "l", hist.Add, 1)
	}
	return err
}

func (h *historian) readLinks() error {
	var st unix.Stat_t
	r, err := h.stat("l", &st)
	if err == nil {
		h.add(r, hist.Links, "l", hist.Read, int64(st.Nlink))
	}
	return err
}

// lock locks a file, reads its slot, writes it if it has the lock alone, and unlocks it.
func (h *historian) lock() error {
	name, kind := "k2", "flock"
	if h.rand.IntN(2) == 0 {
		name, kind = "k", []string{"posix", "ofd"}[h.Proc%2]
	}
	how, op := "sh", hist.Share
	if h.rand.IntN(2) == 0 {
		how, op = "ex", hist.Exclude
	}
	fd := h.fds[name]
	r, err := h.timed(kind, func() error { return setLock(fd, kind, how, 0, 0, h.rand.IntN(2) == 0) })
	if errors.Is(err, unix.EAGAIN) {
		return nil
	} else if err != nil {
		return err
	}
	h.add(r, hist.Lock, name, op, 0)
	slot := name + " slot 0"
	var v int64
	if r, err = h.timed("pread", func() (err error) { v, err = readValue(fd, 0); return err }); err != nil {
		return err
	}
	h.add(r, hist.Register, slot, hist.Read, v)
	if how == "ex" {
		v = h.value()
		b := binary.LittleEndian.AppendUint64(nil, uint64(v))
		if r, err = h.timed("pwrite", func() error { _, err := unix.Pwrite(fd, b, 0); return err }); err != nil {
			return err
		}
		h.add(r, hist.Register, slot, hist.Write, v)
	}
	r, err = h.timed("unlock", func() error { return setLock(fd, kind, "un", 0, 0, false) })
	h.add(r, hist.Lock, name, hist.Unlock, 0)
	return err
}

// addLate records what was read of what a program on the server writes, or that.
func (h *historian) addLate(r hist.Record, object string, op hist.Op, v int64) {
	if r.Kind, r.Object, r.Op = hist.Register, "the server's "+object, op; op == hist.Read {
		r.Out = v
	} else {
		r.Arg = v
	}
	h.late = append(h.late, r)
}

// writeLocal changes something on the server. It takes its time, so that there is some to look at it.
func (h *historian) writeLocal() error {
	defer time.Sleep(20 * time.Millisecond)
	v := h.value()
	switch name := h.pick("f", "a", "x0", "x1"); name {
	case "f":
		b := binary.LittleEndian.AppendUint64(nil, uint64(v))
		r, err := h.timed("pwrite", func() error { _, err := unix.Pwrite(h.fds["o/f"], b, 0); return err })
		h.addLate(r, name, hist.Write, v)
		return err
	case "a":
		r, err := h.timed("utimensat", func() error { return setTimes(h.path("o/a"), eraOfTimes+v) })
		h.addLate(r, name, hist.Write, eraOfTimes+v)
		return err
	default:
		now := int64(1)
		r, err := h.timed("O_EXCL", func() error { return touch(h.path("o/" + name)) })
		if errors.Is(err, unix.EEXIST) {
			now = 0
			r, err = h.timed("unlink", func() error { return unix.Unlink(h.path("o/" + name)) })
		}
		h.addLate(r, name, hist.Write, now)
		return err
	}
}

// readLocal looks at it.
func (h *historian) readLocal() error {
	name, v := h.pick("f", "a", "x0", "x1"), int64(0)
	call, look := "lstat", func() error {
		var st unix.Stat_t
		err := unix.Lstat(h.path("o/"+name), &st)
		switch {
		case name == "a":
			v = st.Mtim.Nano()
		case err == nil:
			v = 1
		case errors.Is(err, unix.ENOENT):
			return nil
		}
		return err
	}
	if name == "f" {
		call, look = "pread", func() error {
			return h.with("o/f", unix.O_RDONLY, func(fd int) (err error) { v, err = readValue(fd, 0); return err })
		}
	}
	r, err := h.timed(call, look)
	if err == nil {
		h.addLate(r, name, hist.Read, v)
	}
	return err
}
