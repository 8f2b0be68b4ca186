// Package fusefs is the kernel's side of a mount: it answers FUSE requests with
// calls of remote and pagecache, and invalidates the kernel's caches when
// somebody else changes a file.
//
// It promises that no process waits in a request that it cannot be killed out
// of, that statfs, the attributes of the root, and close are answered whether
// the server does or not, and that what the kernel is told of a file includes
// every write of this mount that the kernel knows of. It translates and does
// nothing else: no pages, no sending again, no protocol.
package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// readAhead is what the kernel reads ahead in a mount made by root, in KiB.
const readAhead = "1024"

// epochMinor is the minor version of the kernel's protocol that knows INC_EPOCH.
const epochMinor = 44

// Mounted is a mounted directory. Its fields are set at construction. Safe for
// concurrent use.
type Mounted struct {
	fs    []*fileSystem // of the sources, in their order
	own   int           // our own descriptor of the mount
	log   zerolog.Logger
	point string
	dev   string        // MAJOR:MINOR of the mount
	done  chan struct{} // closed when nothing of the mount is left

	panics atomic.Int64
}

// Mount mounts directories of exports and returns when the mount works.
// Errors: status.NotFound, NotDir and Busy for the mountpoint, Unsupported
// where there is no FUSE, NotOwner and Access. After an error nothing stays
// mounted.
func Mount(mountpointPath string, o Options) (*Mounted, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	point, err := mountpoint(mountpointPath)
	if err != nil {
		return nil, err
	}
	fd, err := attach(point, &o)
	if err != nil {
		return nil, err
	}
	m, err := serve(point, fd, &o)
	if err != nil {
		err = errors.Join(status.Wrap(err, "mount", point), detach(context.Background(), point, true))
		if m != nil {
			m.Wait()
		}
		return nil, err
	}
	o.Log.Debug().Str("mountpoint", point).Str("dev", m.dev).Msg("mounted")
	return m, nil
}

// serve starts answering the kernel on a descriptor, which it takes over. With
// an error it may return a mount, which ends when it is detached.
func serve(point string, fd int, o *Options) (*Mounted, error) {
	info, ok := mountedAt(point)
	if !ok {
		unix.Close(fd)
		return nil, errors.New("the kernel does not list the mount")
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	m := &Mounted{own: own, log: o.Log, point: point, dev: info.dev, done: make(chan struct{})}
	front := m.front(o)
	if o.between != nil {
		front = o.between(front)
	}
	server, err := fuse.NewServer(front, fmt.Sprintf("/dev/fd/%d", fd), o.fuseOptions(func() { m.panics.Add(1) }))
	if err != nil {
		unix.Close(own)
		return nil, err
	}
	in := server.KernelSettings()
	kernel := &device{
		server: server, fd: own,
		epochs: in.SupportsVersion(7, epochMinor),
	}
	for _, s := range m.fs {
		s.kernel = hearing(kernel)
		s.notify = newDispatcher(s.tell, s.tellAll)
	}
	go m.serve(server)
	var st unix.Stat_t
	if err := unix.Stat(point, &st); err != nil { // not open(2), for which some kernels ask back before they answer
		return m, err
	}
	if err := m.tune(); err != nil {
		o.Log.Debug().Err(err).Msg("the kernel's read-ahead stays at its default")
	}
	return m, nil
}

// serve answers requests until the mount is gone, then tidies up.
func (m *Mounted) serve(server *fuse.Server) {
	defer close(m.done)
	server.Serve()
	if at, ok := mountedAt(m.point); ok && at.dev == m.dev {
		// The connection was aborted: nobody can use the mount any more.
		m.log.Warn().Str("mountpoint", m.point).Msg("the connection to the kernel ended, unmounting")
		if err := unix.Unmount(m.point, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			err = detach(context.Background(), m.point, true)
			m.log.Warn().Err(err).Msg("unmounting")
		}
	}
	for _, s := range m.fs {
		s.stop()
	}
	unix.Close(m.own)
}

// front makes the file systems of the sources, and what answers for them all: the
// only one itself where it is the root.
func (m *Mounted) front(o *Options) fuse.RawFileSystem {
	if o.Sources[0].Name == "" {
		m.fs = []*fileSystem{newFileSystem(o, &o.Sources[0], 0, m.own)}
		return m.fs[0]
	}
	for i := range o.Sources {
		m.fs = append(m.fs, newFileSystem(o, &o.Sources[i], uint16(i+1), m.own))
	}
	return newSources(o, m.fs)
}

// tune lets the kernel read ahead further than FUSE's own limit; only root may.
func (m *Mounted) tune() error {
	f, err := os.OpenFile("/sys/class/bdi/"+m.dev+"/read_ahead_kb", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(readAhead)
	return errors.Join(err, f.Close())
}

// Wait returns when the mount is gone, whoever unmounted it, and nothing of it
// is running any more. What was written may still be on its way: see
// remote.Session.Close.
func (m *Mounted) Wait() { <-m.done }

// Unmount unmounts and waits until the mount is gone or ctx ends. Error:
// status.Busy while files are open in it; it stays mounted then.
func (m *Mounted) Unmount(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	if err := m.onTop(); err != nil {
		return err
	}
	if err := m.detachUnused(ctx); err != nil {
		return err
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return status.Wrap(ctx.Err(), "umount", m.point)
	}
}

// busyGrace is how long a mount may be in use before Unmount gives up. Who has
// just ended, or forks, holds files for some milliseconds longer.
const busyGrace = 500 * time.Millisecond

// detachUnused detaches the mount once nobody uses it: status.Busy after busyGrace.
func (m *Mounted) detachUnused(ctx context.Context) error {
	grace := time.NewTimer(busyGrace)
	defer grace.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		err := detach(ctx, m.point, false)
		if status.Of(err) != status.Busy {
			return err
		}
		select {
		case <-again.C:
		case <-grace.C:
			return inUse(m.point)
		case <-ctx.Done():
			return err
		}
	}
}

// Detach takes the mount out of the tree at once, also while it is in use. It
// is gone when the last file in it is closed.
func (m *Mounted) Detach() error {
	select {
	case <-m.done:
		return nil
	default:
	}
	if err := m.onTop(); err != nil {
		return err
	}
	return detach(context.Background(), m.point, true)
}

// onTop refuses to unmount what somebody else mounted over this mount.
func (m *Mounted) onTop() error {
	if at, ok := mountedAt(m.point); ok && at.dev != m.dev {
		return status.Newf(status.Busy, "umount", m.point, "%s is mounted over it", at.source)
	}
	return nil
}

// Upcalls of the session of a source, which is named by its place in
// Options.Sources: remote.Options.Recalled, Reset, Failed, Written and LostLock. They do
// not block and notify nobody themselves.

// LostLock says that a lock is lost. It calls nothing of the session.
func (m *Mounted) LostLock(source int, o remote.LockOwner) { m.fs[source].lostLock(o) }

// Recalled says that a lease is recalled; the session is told with Return when it is given back.
func (m *Mounted) Recalled(source int, r lease.Recall) { m.fs[source].recalled(r) }

// Reset says that changes by others may have been missed.
func (m *Mounted) Reset(source int) { m.fs[source].notify.everything() }

// Failed says that a change of ours failed which had been accepted: what is
// cached of the file is not what the server has.
func (m *Mounted) Failed(source int, id proto.FileID, _ proto.Seq, _ error) {
	m.fs[source].notify.put(id, news{failed: true})
}

// Written says that a write of ours was applied and gave the file this change number.
func (m *Mounted) Written(source int, id proto.FileID, change proto.LSN) {
	s := m.fs[source]
	s.cache.Written(s.key(id), change)
	s.memory.wrote(id, change)
}

// Stats of a mount.
type Stats struct {
	Inodes   int   // that are held: see Options.Inodes
	Budget   int   // how many may be, those aside that are open or have writes on their way
	Known    int   // files and names that are remembered
	Knowable int   // how many may be: see Options.Known
	Files    int   // open files
	Dirs     int   // open directories
	Notified int64 // changes by others that the kernel was told
	Panics   int64 // requests that met a broken invariant: the mount is degraded
}

// Stats never blocks on I/O.
func (m *Mounted) Stats() Stats {
	st := Stats{Panics: m.panics.Load()}
	for _, s := range m.fs {
		st.Inodes += s.inodes.len()
		st.Budget += s.inodes.most * shards
		st.Known += s.memory.used()
		st.Knowable += s.known
		st.Files += s.files.len()
		st.Dirs += s.dirs.len()
		st.Notified += s.notified.Load()
	}
	return st
}
