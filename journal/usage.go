package journal

import (
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// UsageReport tells what history takes.
type UsageReport struct {
	Oldest, Newest                             proto.LSN
	OldestTime                                 proto.Time
	LogBytes, GraveBytes, GraveFiles, CapBytes uint64
}

// Usage counts what history takes. It looks at every grave.
func (j *Journal) Usage() (UsageReport, error) {
	u := UsageReport{Oldest: j.oldest(), Newest: j.appliedLSN(), LogBytes: uint64(j.logBytes()), CapBytes: uint64(j.cap)}
	if u.Oldest <= u.Newest {
		r, err := j.log.Read(u.Oldest, false)
		if err != nil {
			return u, err
		}
		u.OldestTime = r.Time
	}
	return u, u.addGraves(j.tree.grave)
}

// addGraves counts what is in a directory of graves. What vanishes meanwhile does not count.
func (u *UsageReport) addGraves(d vfs.Dir) error {
	var names []string
	err := d.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		names = append(names, name)
		return true
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		info, err := d.Stat(name)
		if notThere(err) {
			continue
		}
		if err != nil {
			return err
		}
		u.GraveFiles++
		u.GraveBytes += info.Blocks * 512
		if info.Mode&proto.ModeType != proto.ModeDir {
			continue
		}
		sub, err := d.OpenDir(name)
		if notThere(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = u.addGraves(sub)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
