package wire

import (
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Lock names a lock on a file.
type Lock struct {
	At    proto.LSN // 0: on the present; otherwise on that state, whose locks are of their own
	ID    proto.FileID
	Owner uint64 // the client chooses it: a process, or an open file; 0 for Opens
	Kind  lockset.Kind
	lockset.Lock
}

const lockLeast = 15 // bytes

func appendLock(b []byte, l Lock) []byte {
	b = appendInt(b, l.At)
	b = appendInt(b, l.ID)
	b = appendFixed64(b, l.Owner)
	b = appendInt(b, uint8(l.Kind))
	return appendRange(b, l.Lock)
}

func (c *Cursor) lock() Lock {
	return Lock{At: c.lsn(), ID: c.fid(), Owner: c.fixed64(), Kind: c.lockKind(), Lock: c.lockRange()}
}

func (c *Cursor) lockKind() lockset.Kind { return lockset.Kind(c.upTo(uint64(lockset.Kinds) - 1)) }

func appendRange(b []byte, l lockset.Lock) []byte {
	b = appendInt(b, l.Start)
	b = appendInt(b, l.End)
	b = appendFlag(b, l.Exclusive)
	return appendInt(b, l.PID)
}

func (c *Cursor) lockRange() lockset.Lock {
	return lockset.Lock{Start: c.uvarint(), End: c.uvarint(), Exclusive: c.flag(), PID: c.u32()}
}

// LockReq asks for a lock, for what is in its way, or to give it up.
type LockReq struct {
	Lock Lock
	Wait uint64 // OpLock: 0: answer at once; otherwise wait for it, under this number, which is not in use in the session
}

// Append implements Message.
func (m *LockReq) Append(b []byte) []byte { return appendInt(appendLock(b, m.Lock), m.Wait) }

// Decode implements Message.
func (m *LockReq) Decode(c *Cursor) {
	m.Lock = c.lock()
	m.Wait = c.uvarint()
}

// LockRep says that the lock is granted, unless one of the flags is set.
type LockRep struct {
	Queued bool       // an OpLockDone with the request's number will come, on this connection
	Later  bool       // nothing is granted yet: clients from before a restart may have locks. Ask again
	Attr   proto.Attr // of the file, from after the grant; ID 0: see for yourself
}

// Append implements Message.
func (m *LockRep) Append(b []byte) []byte {
	return appendAttr(appendFlag(appendFlag(b, m.Queued), m.Later), &m.Attr)
}

// Decode implements Message.
func (m *LockRep) Decode(c *Cursor) {
	m.Queued = c.flag()
	m.Later = c.flag()
	m.Attr = c.attr()
}

// TestLockRep is the lock that is in the way of another.
type TestLockRep struct {
	Held  bool // there is one
	Later bool // as in LockRep
	Mine  bool // it is the same session's, so that PID means something
	Lock  lockset.Lock
}

// Append implements Message.
func (m *TestLockRep) Append(b []byte) []byte {
	return appendRange(appendFlag(appendFlag(appendFlag(b, m.Held), m.Later), m.Mine), m.Lock)
}

// Decode implements Message.
func (m *TestLockRep) Decode(c *Cursor) {
	m.Held = c.flag()
	m.Later = c.flag()
	m.Mine = c.flag()
	m.Lock = c.lockRange()
}

// UnwaitReq ends a wait. If the lock was granted meanwhile, OpLockDone comes
// before the reply.
type UnwaitReq struct{ Wait uint64 }

// Append implements Message.
func (m *UnwaitReq) Append(b []byte) []byte { return appendInt(b, m.Wait) }

// Decode implements Message.
func (m *UnwaitReq) Decode(c *Cursor) { m.Wait = c.uvarint() }

// LockDone tells how a wait ended.
type LockDone struct {
	Wait uint64
	Code status.Code // OK: the lock is granted; Deadlock or NoLocks: it will not be
}

// Append implements Message.
func (m *LockDone) Append(b []byte) []byte { return appendInt(appendInt(b, m.Wait), m.Code) }

// Decode implements Message.
func (m *LockDone) Decode(c *Cursor) {
	m.Wait = c.uvarint()
	m.Code = status.Code(c.u16())
}
