package simulator

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
)

// Page tokens say where the page begins, in a form that shows nothing of it and
// holds every character that base64 has.

func (s *Simulator) encodeToken(jobID string, begin, spin int64) string {
	var token [18]byte
	binary.BigEndian.PutUint64(token[:], uint64(begin))
	binary.BigEndian.PutUint16(token[8:], uint16(spin))
	binary.BigEndian.PutUint64(token[10:], s.checksum(jobID, begin, spin))
	mask(&token)
	return base64.StdEncoding.EncodeToString(token[:17]) // an odd length, so that it ends in =
}

func (s *Simulator) decodeToken(jobID, text string) (begin, spin int64, err error) {
	bytes, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(bytes) != 17 {
		return 0, 0, errToken
	}
	var token [18]byte
	copy(token[:], bytes)
	mask(&token)
	begin = int64(binary.BigEndian.Uint64(token[:]))
	spin = int64(binary.BigEndian.Uint16(token[8:]))
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], s.checksum(jobID, begin, spin))
	if string(sum[:7]) != string(token[10:17]) {
		return 0, 0, errToken
	}
	return begin, spin, nil
}

func (s *Simulator) checksum(jobID string, begin, spin int64) uint64 {
	s.mu.Lock()
	generation := s.generation
	s.mu.Unlock()
	hash := fnv.New64a()
	hash.Write([]byte(jobID))
	return mix(hash.Sum64() ^ mix(s.options.Seed+generation) ^ mix(uint64(begin)+1)<<1 ^ uint64(spin))
}

// mask hides the position behind the checksum, its own inverse.
func mask(token *[18]byte) {
	for i := range 10 {
		token[i] ^= token[10+i%7] ^ byte(0x5a+i)
	}
}

// mix scrambles 64 bits (splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
