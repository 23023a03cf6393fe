package wire

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

var file = gladsheimv1.File_gladsheim_v1_gladsheim_proto

func TestContractHolds(t *testing.T) {
	rows, err := Table()
	require.NoError(t, err)
	require.Equal(t, 81, len(rows), "the table was cut short")
	require.Empty(t, Compare(rows, file))
}

// Whatever differs between table and code, in whichever column, is noticed.
func TestAnyDifferenceIsNoticed(t *testing.T) {
	rows, err := Table()
	require.NoError(t, err)
	for i, row := range rows {
		renumbered := func(r *Row) { r.Number = "19" }
		retyped := func(r *Row) { r.Type = "repeated " + r.Type }
		if row.Kind == "rpc" {
			renumbered = func(r *Row) { r.Number = "ServiceList" }
			retyped = func(r *Row) { r.Type = "stream " + r.Type }
		}
		changes := map[string]func(*Row){
			"moved to another holder": func(r *Row) { r.Holder += "2" },
			"renamed":                 func(r *Row) { r.Name += "_2" },
			"renumbered":              renumbered,
			"retyped":                 retyped,
		}
		for what, change := range changes {
			altered := slices.Clone(rows)
			change(&altered[i])
			require.NotEmpty(t, Compare(altered, file), "%s: %s", what, row)
		}
	}
}

// Below 20 no field is free, and no enum of the contract takes another value.
func TestAdditionsWhereNoneBelongAreNoticed(t *testing.T) {
	rows, err := Table()
	require.NoError(t, err)
	holders := make(map[string]int)
	for _, row := range rows {
		holders[row.Holder]++
	}
	for i, row := range rows {
		if row.Kind == "rpc" || holders[row.Holder] == 1 {
			continue // calls may be added, and so may whole messages
		}
		without := slices.Delete(slices.Clone(rows), i, i+1)
		require.Len(t, Compare(without, file), 1, "as if added: %s", row)
	}
}
