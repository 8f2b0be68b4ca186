package journal

import (
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Moment turns a moment into the record that it includes, and that record's
// time. now is the newest applied record; a time is the newest record not after
// it, which for a time to come is now. A transaction is one moment: a record of it
// means all of it, a time while it was being done the record before it.
// Errors: status.NoMoment (no such label, a record in the future), NoHistory.
func (j *Journal) Moment(m proto.Moment) (proto.LSN, proto.Time, error) {
	lsn, err := j.momentLSN(m)
	if err != nil {
		return 0, 0, err
	}
	if lsn == 0 { // nothing has ever happened
		return 0, j.opts.Now(), nil
	}
	r, err := j.log.Read(lsn, false)
	if err != nil {
		return 0, 0, err
	}
	return lsn, r.Time, nil
}

func (j *Journal) momentLSN(m proto.Moment) (proto.LSN, error) {
	newest, oldest := j.appliedLSN(), j.oldest()
	switch m.Kind {
	case proto.MomentNow:
		return newest, nil
	case proto.MomentLabel:
		lsn, ok := j.hist.label(m.Label)
		if !ok {
			return 0, status.Newf(status.NoMoment, "", "label "+m.Label, "no such label in the history that is kept")
		}
		return lsn, nil
	case proto.MomentLSN:
		switch {
		case m.LSN == 0:
			return newest, nil
		case m.LSN > newest:
			return 0, status.Newf(status.NoMoment, "", m.String(), "the newest record is %d", newest)
		case m.LSN < oldest:
			return 0, status.Newf(status.NoHistory, "", m.String(), "the oldest record that is kept is %d", oldest)
		}
		if t, ok := j.hist.around(m.LSN); ok {
			return t.end, nil
		}
		return m.LSN, nil
	case proto.MomentTime:
		lsn, err := j.log.AtTime(m.Time)
		if err != nil {
			return 0, err
		}
		if lsn = min(lsn, newest); lsn < oldest {
			return 0, status.Newf(status.NoHistory, "", m.String(), "the oldest record that is kept is %d", oldest)
		}
		if t, ok := j.hist.around(lsn); ok && t.begin > oldest {
			return t.begin - 1, nil
		}
		return lsn, nil
	}
	return 0, status.Invalid
}
