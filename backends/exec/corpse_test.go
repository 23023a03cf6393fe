package exec

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestACorpseCountsOnce: a zombie whose parent never reaps it is no sign of
// life at each further look, or a kill would look for ever.
func TestACorpseCountsOnce(t *testing.T) {
	h := &handle{condemned: map[int]bool{1: true}, corpses: map[int]bool{}}
	for range 3 {
		h.corpse(1)
		h.corpse(2)
	}
	require.Equal(t, 1, h.signsOfLife())
}
