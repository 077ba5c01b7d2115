package pipeline

// counts counts names that come again and again, without an allocation for
// those it has seen.
type counts map[string]*int64

// manyNames is how many names are remembered with nothing counted.
const manyNames = 1000

func (c counts) add(name []byte) {
	n := c[string(name)]
	if n == nil {
		n = new(int64)
		c[string(name)] = n
	}
	*n++
}

func (c counts) reset() {
	if len(c) > manyNames {
		clear(c)
	}
	for _, n := range c {
		*n = 0
	}
}

// addTo adds what is counted to a sum.
func (c counts) addTo(sum map[string]int64) {
	for name, n := range c {
		if *n > 0 {
			sum[name] += *n
		}
	}
}
