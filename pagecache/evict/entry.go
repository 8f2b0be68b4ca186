// Package evict chooses what leaves a full cache. Its policies are plain data
// structures: no locks, no I/O, no clock. Time is the number of accesses. It
// imports nothing of Cage.
//
// A policy keeps entries, which the owner embeds in what it caches:
//
//	Add     an entry arrives, which is its first access
//	Touch   it is used
//	Pin     it cannot be a victim until as many calls of Unpin
//	Unpin   takes a Pin back; the entry counts as used until now
//	Remove  it is not wanted any more, pinned or not, and is forgotten
//	Victim  takes out and returns the entry that is to leave next, nil where all
//	        are pinned. It is for a full cache only: from how often it is asked a
//	        policy knows how many entries the cache can hold.
//	Len     the number of entries, pinned ones included
//
// LFU, least frequently used with ageing, keeps what it can of a loop that is
// larger than the cache, and its hot set through any scan. S3FIFO gets over a
// change of the hot set faster, and a use costs it the least. LRU is what
// everybody knows. TestHitRates compares them.
//
// No policy is safe for concurrent use, and none may be copied.
package evict

const (
	burstShare = 32 // accesses to an entry within so small a share of all entries' number are one
	minGhosts  = 64 // remembered departures at least; otherwise as many as there were entries when it was full
)

// burst is within how many accesses several to one of n entries count as one: a
// page read in small pieces was read once.
func burst(n int) int { return 1 + n/burstShare }

// home says on which list an entry is, or will be once it is unpinned.
type home uint8

const (
	out   home = iota
	young      // LFU, S3FIFO: arrived lately
	old
)

// Entry is a place in a policy, to be embedded in what is cached. It belongs to
// one policy from Add until Remove or until Victim returns it.
type Entry[K comparable] struct {
	Key K // set by the owner before Add; what is remembered of it is remembered under it

	prev, next *Entry[K] // the list of home, while it is on one
	used       uint64    // access that used it last
	counted    uint64    // access that last raised count
	halvings   uint64    // LFU: halvings that count has seen
	pins       int
	count      uint8
	home       home
}

// departure is when a key left; what is remembered of it is valid if it left at the same access.
type departure[K comparable] struct {
	key  K
	left uint64
}
