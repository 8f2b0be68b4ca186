package wal

import (
	"errors"
	"fmt"
	"io"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
)

// Dump writes a segment for people: its header, then a line for each frame, each
// record and each place that is no frame, as far as it can be read. The errors
// are those of the disk, of w, and of a segment header that cannot be read.
func Dump(dir vfs.Dir, name string, w io.Writer) error {
	seg, err := openSegment(Options{Dir: dir, ReadOnly: true}, name)
	if err != nil {
		return err
	}
	defer seg.file.Close()
	h := &seg.head
	if _, err = fmt.Fprintf(w, "segment %s id %016x first %d size %d time %v\n", name, h.ID, h.First, h.Size, h.Time); err != nil {
		return err
	}
	for walk := newWalker(seg, true); err == nil; {
		off := walk.off
		f, bad := walk.frame()
		if bad != nil {
			if !isBad(bad) {
				return bad
			}
			if _, err = fmt.Fprintf(w, "%10d  bad: %v\n", off, bad); err != nil {
				return err
			}
			if f, err = walk.resume(); err != nil || f == nil {
				return err
			}
			off = walk.off - f.Size()
		}
		if err = dumpFrame(w, off, f); err == nil && f.Flags&record.FlagEnd != 0 {
			return nil
		}
	}
	return err
}

func dumpFrame(w io.Writer, off int64, f *record.Frame) error {
	_, err := fmt.Fprintf(w, "%10d  frame first %d records %d flags %d synced %d skeletons %d images %d chain %x\n",
		off, f.First, f.Records, f.Flags, f.Synced, f.SkeletonLen, f.ImageLen, f.Heads.Skeletons)
	if err != nil {
		return err
	}
	recs, bad := f.Decode()
	if errors.Is(bad, record.ErrRot) {
		_, err = fmt.Fprintf(w, "            bad: %v\n", bad)
		return err
	}
	for _, r := range recs {
		_, err = fmt.Fprintf(w, "            %d %v kind %d session %x seq %d client %d uid %d txn %d id %d dir %d name %q new %d %q off %d len %d images %d status %d\n",
			r.LSN, r.Time, r.Kind, uint64(r.Session), r.Seq, r.Client, r.UID, r.Txn, r.ID, r.Dir, r.Name, r.NewDir, r.NewName,
			r.Off, r.Len, r.ImageLen, status.Code(r.Status))
		if err != nil {
			return err
		}
	}
	return nil
}
