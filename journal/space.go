package journal

import (
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

func (j *Journal) statFS(uid, gid uint32) (proto.StatFS, error) {
	s, err := j.opts.FS.StatFS()
	if err != nil {
		return proto.StatFS{}, err
	}
	st := proto.StatFS{BlockSize: s.BlockSize, NameMax: s.NameMax, Blocks: s.Blocks, BlocksFree: s.BlocksFree,
		BlocksAvail: s.BlocksAvail, Files: s.Files, FilesFree: s.FilesFree}
	if st.BlockSize == 0 {
		return st, nil
	}
	withhold(&st, j.lacking())
	for _, group := range []bool{false, true} {
		id := uid
		if group {
			id = gid
		}
		q, err := j.opts.FS.Quota(group, id)
		if err != nil {
			return proto.StatFS{}, err
		}
		limit(&st, q)
	}
	return st, nil
}

// lacking is the disk space in bytes that the journal itself needs before it can
// go on for long, and does not have yet: for the log, the next checkpoint and
// the table of files. What it has is not free to begin with.
func (j *Journal) lacking() int64 {
	return j.log.Lacking() + j.roomShort.Load() + j.tree.lacking()
}

// withhold takes space in bytes from what is free.
func withhold(st *proto.StatFS, bytes int64) {
	n := (uint64(bytes) + uint64(st.BlockSize) - 1) / uint64(st.BlockSize)
	st.BlocksFree -= min(n, st.BlocksFree)
	st.BlocksAvail -= min(n, st.BlocksAvail)
}

// limit shows the share that a quota leaves as if it were the file system, as
// ext4 and xfs do for projects.
func limit(st *proto.StatFS, q vfs.Quota) {
	if q.SpaceLimit != 0 {
		left := (q.SpaceLimit - min(q.Space, q.SpaceLimit)) / uint64(st.BlockSize)
		st.Blocks = min(st.Blocks, q.SpaceLimit/uint64(st.BlockSize))
		st.BlocksFree, st.BlocksAvail = min(st.BlocksFree, left), min(st.BlocksAvail, left)
	}
	if q.FilesLimit != 0 {
		st.Files = min(st.Files, q.FilesLimit)
		st.FilesFree = min(st.FilesFree, q.FilesLimit-min(q.Files, q.FilesLimit))
	}
}
