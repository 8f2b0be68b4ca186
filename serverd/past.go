package serverd

import (
	"sync"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
)

// maxPast is how many past states of an export are kept open.
const maxPast = 8

// pastCache keeps the past states that were asked for last. Its zero value is empty.
type pastCache struct {
	mu   sync.Mutex
	open []pastState // guarded by mu; the last used first
}

type pastState struct {
	lsn  proto.LSN
	past *journal.Past
}

// at returns the state that a record left: status.NoHistory, NoMoment.
func (p *pastCache) at(j *journal.Journal, lsn proto.LSN) (*journal.Past, error) {
	if past := p.find(lsn); past != nil {
		return past, nil
	}
	past, err := j.At(lsn)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = append([]pastState{{lsn, past}}, p.open[:min(len(p.open), maxPast-1)]...)
	return past, nil
}

func (p *pastCache) find(lsn proto.LSN) *journal.Past {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.open {
		if s.lsn == lsn {
			copy(p.open[1:i+1], p.open[:i])
			p.open[0] = s
			return s.past
		}
	}
	return nil
}
