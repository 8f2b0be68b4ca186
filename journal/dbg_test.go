package journal

import (
	"cagefs.dev/cage/journal/record"
	"fmt"
)

func dumpLog(j *Journal) {
	j.log.Scan(j.log.Oldest(), false, func(r *record.Record) error {
		fmt.Printf("%d k%d f%x id%d %d/%s -> %d/%s v%d off %d len %d size %d->%d upto %d", r.LSN, r.Kind, r.Flag, r.ID, r.Dir, r.Name, r.NewDir, r.NewName, r.Victim, r.Off, r.Len, r.OldSize, r.NewSize, r.Upto)
		for _, p := range r.Pieces {
			fmt.Printf(" [%d %d+%d]", p.Kind, p.Off, p.Len)
		}
		fmt.Println()
		return nil
	})
}
