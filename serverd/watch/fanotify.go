package watch

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fanotify is a mark on the whole file system.
type fanotify struct {
	// Set at construction.
	o    Options
	file *os.File
	raw  syscall.RawConn // of file
	root int             // the tree's root: where handles are opened
	self int32

	// Owned by run.
	dirs  map[handle]*dirInfo
	procs *processes
}

// dirInfo is what is known of a directory's handle.
type dirInfo struct {
	place Place // without a name
	in    bool  // in the tree, and not hidden
}

// maxDirs bounds the handles that are remembered.
const maxDirs = 32768

const fanMask = unix.FAN_MODIFY | unix.FAN_ATTRIB | unix.FAN_CLOSE_WRITE | unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_RENAME | unix.FAN_ONDIR

func openFanotify(o Options) (*fanotify, error) {
	root, err := openRoot(o.Dir)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_DFID_NAME, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		unix.Close(root)
		return nil, os.NewSyscallError("fanotify_init", err)
	}
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, fanMask, root, "")
	if err == nil { // as events will ask for it
		err = canOpenHandles(root)
	}
	if err != nil {
		unix.Close(fd)
		unix.Close(root)
		return nil, os.NewSyscallError("fanotify_mark", err)
	}
	f := &fanotify{o: o, file: os.NewFile(uintptr(fd), "fanotify"), root: root, self: int32(os.Getpid()),
		dirs: map[handle]*dirInfo{}, procs: newProcesses()}
	if f.raw, err = f.file.SyscallConn(); err != nil {
		f.file.Close()
		unix.Close(root)
		return nil, err
	}
	return f, nil
}

func canOpenHandles(root int) error {
	h, _, err := unix.NameToHandleAt(root, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	fd, err := unix.OpenByHandleAt(root, h, unix.O_PATH|unix.O_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func (f *fanotify) by() string { return "fanotify" }

func (f *fanotify) sure() bool { return true }

func (f *fanotify) close() { f.file.Close() }

// run reads events until close.
func (f *fanotify) run(w *Watcher) error {
	defer unix.Close(f.root)
	w.complete.Store(true)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.read(f.raw, buf, func() bool { return false })
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := decode(buf[:n], func(e event) { f.take(w, e) }); err != nil {
			w.overflow(w.emptied())
			w.failed(err)
		}
	}
}

// take handles one event.
func (f *fanotify) take(w *Watcher, e event) {
	if e.mask&unix.FAN_Q_OVERFLOW != 0 {
		w.overflow(w.emptied())
		return
	}
	if e.mask&unix.FAN_ONDIR != 0 && e.mask&unix.FAN_RENAME != 0 { // paths change, also by this process
		clear(f.dirs)
	}
	if e.pid == f.self {
		return
	}
	at, in := f.place(e.dir, e.name)
	if e.mask&unix.FAN_RENAME != 0 {
		f.takeRename(w, e, at, in)
		return
	}
	if !in {
		return
	}
	what := Sure
	if e.mask&unix.FAN_CREATE != 0 {
		what |= In
	}
	if e.mask&unix.FAN_DELETE != 0 {
		what |= Out | Gone
	}
	if e.mask&unix.FAN_MODIFY != 0 {
		what |= Content
	}
	if e.mask&unix.FAN_ATTRIB != 0 {
		what |= Attr
	}
	if e.mask&unix.FAN_CLOSE_WRITE != 0 {
		what |= Closed
	}
	w.add(Event{Place: at, What: what, By: f.procs.find(e.pid)})
}

func (f *fanotify) takeRename(w *Watcher, e event, to Place, toIn bool) {
	from, fromIn := f.place(e.old, e.was)
	if !toIn && !fromIn {
		return
	}
	by := f.procs.find(e.pid)
	if toIn {
		ev := Event{Place: to, What: In | Sure, By: by}
		if fromIn {
			ev.From = &from
		}
		w.add(ev)
	}
	if fromIn {
		ev := Event{Place: from, What: Out | Sure, By: by}
		if !toIn {
			ev.What |= Gone
		}
		w.add(ev)
	}
}

// place finds the place of a name in a directory; in is false for one outside.
func (f *fanotify) place(h handle, name string) (p Place, in bool) {
	if h.bytes == "" {
		return Place{}, false
	}
	d := f.dirs[h]
	if d == nil {
		var gone bool
		if d, gone = f.resolve(h); gone {
			return Place{}, false
		}
		if len(f.dirs) >= maxDirs {
			clear(f.dirs)
		}
		f.dirs[h] = d
	}
	if !d.in || d.place.Path == "" && name == f.o.Hidden {
		return Place{}, false
	}
	p = d.place
	if name != "." {
		p.Name = name
	}
	return p, true
}

// resolve opens a directory by its handle and finds out where it is.
func (f *fanotify) resolve(h handle) (d *dirInfo, gone bool) {
	fd, err := unix.OpenByHandleAt(f.root, unix.NewFileHandle(h.typ, []byte(h.bytes)), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return nil, true
	}
	defer unix.Close(fd)
	ident, links, err := identOf(fd)
	if err != nil || links == 0 {
		return nil, true
	}
	root, err := fdPath(f.root)
	if err != nil {
		return nil, true
	}
	path, err := fdPath(fd)
	if err != nil {
		return nil, true
	}
	d = &dirInfo{place: Place{Dir: ident}}
	d.place.Path, d.in = below(root, path)
	if first, _, _ := strings.Cut(d.place.Path, "/"); first == f.o.Hidden && first != "" {
		d.in = false
	}
	return d, false
}

// below returns the path of a directory below another.
func below(root, path string) (string, bool) {
	if path == root {
		return "", true
	}
	if root != "/" {
		root += "/"
	}
	return strings.CutPrefix(path, root)
}
