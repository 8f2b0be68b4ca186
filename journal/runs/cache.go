package runs

import (
	"container/list"
	"sync"
)

// Cache keeps the blocks that were used last, of one store or several. Safe for
// concurrent use.
type Cache struct {
	budget int64 // set at construction

	mu     sync.Mutex // a leaf lock, held over no I/O
	used   int64
	blocks map[blockKey]*list.Element // of *cachedBlock
	lru    list.List                  // the last used one in front
}

type blockKey struct {
	run   *run
	block int
}

type cachedBlock struct {
	key blockKey
	block
	cost int64
}

// NewCache makes a cache of so many bytes.
func NewCache(budget int64) *Cache {
	return &Cache{budget: budget, blocks: map[blockKey]*list.Element{}}
}

func (c *Cache) get(k blockKey) (block, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.blocks[k]
	if e == nil {
		return block{}, false
	}
	c.lru.MoveToFront(e)
	return e.Value.(*cachedBlock).block, true
}

// blockOverhead is what a block takes in memory beside its bytes.
const blockOverhead = 256

func (c *Cache) put(k blockKey, b block, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[k] != nil { // another reader was quicker
		return
	}
	n := &cachedBlock{key: k, block: b, cost: int64(size) + blockOverhead}
	c.blocks[k] = c.lru.PushFront(n)
	for c.used += n.cost; c.used > c.budget; {
		c.dropLocked(c.lru.Back())
	}
}

func (c *Cache) dropLocked(e *list.Element) {
	n := c.lru.Remove(e).(*cachedBlock)
	delete(c.blocks, n.key)
	c.used -= n.cost
}

// forget drops the blocks of a run that is gone.
func (c *Cache) forget(r *run) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range r.index {
		if e := c.blocks[blockKey{r, i}]; e != nil {
			c.dropLocked(e)
		}
	}
}
