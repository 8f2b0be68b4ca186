package branch

import (
	"io"
	"slices"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// File is what a branch has for one file: what its bytes are when all writes are made.
type File struct {
	ID      proto.FileID
	Path    string
	Base    proto.LSN
	Extents []Extent // ascending, apart
	Ends    []Extent // to be put at the end of the file, in order; Off is where the writer took that to be
	Bytes   uint64   // of all writes
}

// Extent is bytes of a file, and where they are in the branch.
type Extent struct {
	Off, Len uint64
	At       int64
}

// end is the first offset behind it.
func (e Extent) end() uint64 { return e.Off + e.Len }

// maxExtents bounds the memory that the files of a branch take.
const maxExtents = 1 << 20

// Files reads all writes and sums them up, in the order in which files were first written.
// Errors: those of Next, and status.NoSpace for a branch of more than a million pieces.
func (br *Reader) Files() ([]*File, error) {
	var out []*File
	byID := map[proto.FileID]*File{}
	for extents := 0; ; extents++ {
		w, err := br.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if extents == maxExtents {
			return out, status.Newf(status.NoSpace, "read", "branch", "it has more than %d writes", maxExtents)
		}
		f := byID[w.ID]
		if f == nil {
			f = &File{ID: w.ID, Path: w.Path, Base: w.Base}
			byID[w.ID] = f
			out = append(out, f)
		}
		f.add(w)
	}
}

func (f *File) add(w *Write) {
	e := Extent{Off: w.Off, Len: uint64(len(w.Data)), At: w.At}
	f.Base, f.Bytes = min(f.Base, w.Base), f.Bytes+e.Len
	if w.Append {
		f.Ends = append(f.Ends, e)
		return
	}
	f.Extents = put(f.Extents, e)
}

// put lays an extent over others.
func put(list []Extent, e Extent) []Extent {
	first, _ := slices.BinarySearchFunc(list, e.Off, func(x Extent, off uint64) int {
		if x.end() <= off {
			return -1
		}
		return 1
	})
	last := first
	fresh := []Extent{e}
	for ; last < len(list) && list[last].Off < e.end(); last++ {
		x := list[last]
		if x.Off < e.Off {
			fresh = slices.Insert(fresh, 0, Extent{x.Off, e.Off - x.Off, x.At})
		}
		if cut := e.end() - x.Off; x.end() > e.end() {
			fresh = append(fresh, Extent{e.end(), x.end() - e.end(), x.At + int64(cut)})
		}
	}
	return slices.Replace(list, first, last, fresh...)
}

// Over is what is to be written over a file of a size: the extents, and behind them and its end the Ends.
func (f *File) Over(size uint64) []Extent {
	out := slices.Clone(f.Extents)
	if n := len(out); n > 0 {
		size = max(size, out[n-1].end())
	}
	for _, e := range f.Ends {
		out = append(out, Extent{size, e.Len, e.At})
		size += e.Len
	}
	return out
}

// AppendsOnly reports whether all of it goes to the end: then nothing that others
// have done to the file is in the way.
func (f *File) AppendsOnly() bool { return len(f.Extents) == 0 }
