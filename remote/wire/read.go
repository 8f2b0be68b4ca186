package wire

import (
	"bytes"

	"cagefs.dev/cage/remote/proto"
)

// ReqHeader is at the start of every request for a file.
type ReqHeader struct {
	At    proto.LSN // 0: now; otherwise the state that this record left
	Ident proto.Ident
}

func appendReqHeader(b []byte, h *ReqHeader) []byte {
	return appendIdent(appendInt(b, h.At), &h.Ident)
}

func (c *Cursor) reqHeader() ReqHeader { return ReqHeader{At: c.lsn(), Ident: c.ident()} }

// LookupReq asks for a name in a directory.
type LookupReq struct {
	ReqHeader
	Dir  proto.FileID
	Name string
}

// Append implements Message.
func (m *LookupReq) Append(b []byte) []byte {
	b = appendReqHeader(b, &m.ReqHeader)
	b = appendInt(b, m.Dir)
	return appendBytes(b, m.Name)
}

// Decode implements Message.
func (m *LookupReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.Dir = c.fid()
	m.Name = c.str(proto.MaxName)
}

// IDReq asks something of a file.
type IDReq struct {
	ReqHeader
	ID proto.FileID
}

// Append implements Message.
func (m *IDReq) Append(b []byte) []byte {
	return appendInt(appendReqHeader(b, &m.ReqHeader), m.ID)
}

// Decode implements Message.
func (m *IDReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.ID = c.fid()
}

// AttrRep is the file that was asked for.
type AttrRep struct{ Attr proto.Attr }

// Append implements Message.
func (m *AttrRep) Append(b []byte) []byte { return appendAttr(b, &m.Attr) }

// Decode implements Message.
func (m *AttrRep) Decode(c *Cursor) { m.Attr = c.attr() }

// ReadDirReq asks for entries of a directory after Cookie (0: from the start).
type ReadDirReq struct {
	ReqHeader
	ID     proto.FileID
	Cookie uint64
	Max    uint32 // entries, at most MaxEntries
	Plus   bool   // with attributes
}

// Append implements Message.
func (m *ReadDirReq) Append(b []byte) []byte {
	b = appendReqHeader(b, &m.ReqHeader)
	b = appendInt(b, m.ID)
	b = appendInt(b, m.Cookie)
	b = appendInt(b, m.Max)
	return appendFlag(b, m.Plus)
}

// Decode implements Message.
func (m *ReadDirReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.ID = c.fid()
	m.Cookie = c.uvarint()
	m.Max = c.u32()
	m.Plus = c.flag()
}

// ReadDirRep is a part of a listing. Change is the directory's change number,
// Parent the directory above it, 0 where there is none.
// Entries that a frame has no room for are left out when it is encoded, and EOF
// is then false on arrival: the listing goes on after the last cookie.
type ReadDirRep struct {
	Entries []proto.DirEntry
	EOF     bool
	Change  proto.LSN
	Parent  proto.FileID
}

// Append implements Message.
func (m *ReadDirRep) Append(b []byte) []byte {
	b, n := appendCut(b, m.Entries, MaxEntries, appendDirEntry)
	b = appendFlag(b, m.EOF && n == len(m.Entries))
	b = appendInt(b, m.Change)
	return appendInt(b, m.Parent)
}

// Decode implements Message.
func (m *ReadDirRep) Decode(c *Cursor) {
	m.Entries = list(c, c.cutCount(MaxEntries, 2+attrLeast), (*Cursor).dirEntry)
	m.EOF = c.flag()
	m.Change = c.lsn()
	m.Parent = c.fid()
}

// ReadlinkRep is a symlink's target.
type ReadlinkRep struct{ Target string }

// Append implements Message.
func (m *ReadlinkRep) Append(b []byte) []byte { return appendBytes(b, m.Target) }

// Decode implements Message.
func (m *ReadlinkRep) Decode(c *Cursor) { m.Target = c.str(proto.MaxTarget) }

// ReadReq asks for bytes, at most proto.MaxIO.
type ReadReq struct {
	ReqHeader
	ID  proto.FileID
	Off uint64
	Len uint32
}

// Append implements Message.
func (m *ReadReq) Append(b []byte) []byte {
	b = appendReqHeader(b, &m.ReqHeader)
	b = appendInt(b, m.ID)
	b = appendInt(b, m.Off)
	return appendInt(b, m.Len)
}

// Decode implements Message.
func (m *ReadReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.ID = c.fid()
	m.Off = c.uvarint()
	m.Len = uint32(c.upTo(proto.MaxIO))
}

// ReadRep has fewer bytes than asked for only at the end of the file.
// Data aliases the frame that it was decoded from.
type ReadRep struct {
	Change proto.LSN
	Size   uint64 // of the file, when the bytes were read
	Data   []byte
}

// Append implements Message.
func (m *ReadRep) Append(b []byte) []byte { return append(m.appendHead(b), m.Data...) }

func (m *ReadRep) appendHead(b []byte) []byte {
	b = appendInt(b, m.Change)
	b = appendInt(b, m.Size)
	return appendInt(b, uint64(len(m.Data)))
}

func (m *ReadRep) tail() []byte { return m.Data }

// Decode implements Message.
func (m *ReadRep) Decode(c *Cursor) {
	m.Change = c.lsn()
	m.Size = c.uvarint()
	m.Data = c.bytes(proto.MaxIO)
}

// Seeks, as in lseek(2).
const (
	SeekData = 0
	SeekHole = 1
)

// SeekReq asks for the next data (SeekData) or hole (SeekHole) of a regular file at or after Off.
type SeekReq struct {
	ReqHeader
	ID     proto.FileID
	Off    uint64
	Whence uint32
}

// Append implements Message.
func (m *SeekReq) Append(b []byte) []byte {
	b = appendReqHeader(b, &m.ReqHeader)
	b = appendInt(b, m.ID)
	b = appendInt(b, m.Off)
	return appendInt(b, m.Whence)
}

// Decode implements Message.
func (m *SeekReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.ID = c.fid()
	m.Off = c.uvarint()
	m.Whence = c.u32()
}

// SeekRep is where it begins; the end of the file is a hole. status.NoDevice
// where there is none, as lseek(2).
type SeekRep struct{ Off uint64 }

// Append implements Message.
func (m *SeekRep) Append(b []byte) []byte { return appendInt(b, m.Off) }

// Decode implements Message.
func (m *SeekRep) Decode(c *Cursor) { m.Off = c.uvarint() }

// Open flags.
const (
	OpenRead  = 1
	OpenWrite = 2
)

// OpenReq opens a file by number.
type OpenReq struct {
	ReqHeader
	ID    proto.FileID
	Flags uint32
}

// Append implements Message.
func (m *OpenReq) Append(b []byte) []byte {
	b = appendReqHeader(b, &m.ReqHeader)
	b = appendInt(b, m.ID)
	return appendInt(b, m.Flags)
}

// Decode implements Message.
func (m *OpenReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.ID = c.fid()
	m.Flags = c.u32()
}

// ReleaseReq gives up N opens of a file.
type ReleaseReq struct {
	ID proto.FileID
	N  uint32
}

// Append implements Message.
func (m *ReleaseReq) Append(b []byte) []byte { return appendInt(appendInt(b, m.ID), m.N) }

// Decode implements Message.
func (m *ReleaseReq) Decode(c *Cursor) {
	m.ID = c.fid()
	m.N = c.u32()
}

// StatFSRep describes the file system.
type StatFSRep struct{ StatFS proto.StatFS }

// Append implements Message.
func (m *StatFSRep) Append(b []byte) []byte { return appendStatFS(b, &m.StatFS) }

// Decode implements Message.
func (m *StatFSRep) Decode(c *Cursor) { m.StatFS = c.statFS() }

// XattrReq asks for an extended attribute.
type XattrReq struct {
	ReqHeader
	ID   proto.FileID
	Name string
}

// Append implements Message.
func (m *XattrReq) Append(b []byte) []byte {
	b = appendReqHeader(b, &m.ReqHeader)
	b = appendInt(b, m.ID)
	return appendBytes(b, m.Name)
}

// Decode implements Message.
func (m *XattrReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.ID = c.fid()
	m.Name = c.str(proto.MaxName)
}

// BytesRep is a value, at most proto.MaxXattr.
type BytesRep struct{ Value []byte }

// Append implements Message.
func (m *BytesRep) Append(b []byte) []byte { return appendBytes(b, m.Value) }

// Decode implements Message.
func (m *BytesRep) Decode(c *Cursor) { m.Value = bytes.Clone(c.bytes(proto.MaxXattr)) }

// NamesRep is a list of names of extended attributes, at most proto.MaxXattr
// bytes in all.
type NamesRep struct{ Names []string }

// Append implements Message.
func (m *NamesRep) Append(b []byte) []byte { return appendList(b, m.Names, appendBytes[string]) }

// Decode implements Message.
func (m *NamesRep) Decode(c *Cursor) { m.Names = c.strs(proto.MaxXattr, proto.MaxName) }

// ResolveReq asks for the file under a path below the export; symlinks are not followed.
type ResolveReq struct {
	ReqHeader
	Path string
}

// Append implements Message.
func (m *ResolveReq) Append(b []byte) []byte {
	return appendBytes(appendReqHeader(b, &m.ReqHeader), m.Path)
}

// Decode implements Message.
func (m *ResolveReq) Decode(c *Cursor) {
	m.ReqHeader = c.reqHeader()
	m.Path = c.str(proto.MaxPath)
}
