package failpoint

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTheRegistryIsWhole: every constant is in it, once, S0 to S12 and T0 to T9.
func TestTheRegistryIsWhole(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "failpoint.go", nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	var defined []Point
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		require.NoError(t, err)
		defined = append(defined, Point(text))
		return true
	})
	require.Equal(t, defined, Points())
	var steps []string
	for _, p := range Points() {
		step, _, _ := strings.Cut(string(p), ".")
		steps = append(steps, step)
	}
	require.Equal(t, "S0 S1 S2 S3 S4 S5 S6 S7 S8 S9 S10 S11 S12 T0 T1 T2 T3 T4 T5 T6 T7 T8 T9", strings.Join(steps, " "))
}

func TestWhichBackendsPassAPoint(t *testing.T) {
	count := func(backend string) (n int) {
		for _, p := range Points() {
			if p.Of(backend) {
				n++
			}
		}
		return n
	}
	require.Equal(t, []int{23, 22, 19}, []int{count("systemd"), count("cgroupfs"), count("exec")})
}

// TestWithoutTheTagAPointIsNothing is of this build.
func TestWithoutTheTagAPointIsNothing(t *testing.T) {
	require.False(t, Enabled)
	require.NoError(t, Hit(S0Received))
	require.NoError(t, Serve("/nonexistent"))
	require.NoError(t, After(nil, S0Received))
	failed := errors.New("failed")
	require.Equal(t, failed, After(failed, S0Received))
}
