package service

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestVerdict(t *testing.T) {
	spec := Defaults()
	s := Status{Spec: &spec, Health: Health{Status: Healthy, Message: "the check succeeded", Failures: 1}}
	require.Equal(t, s.Health, s.Verdict())
	s.Hung = Hang{Since: time.Now(), Why: "nobody is served"}
	require.Equal(t, Health{Status: Healthy, Message: "it hangs: nobody is served; the check: the check succeeded", Failures: 1}, s.Verdict())
	spec.Hang = HangUnhealthy
	require.Equal(t, Ill, s.Verdict().Status)
	s.Health = Health{}
	require.Equal(t, Health{Status: Ill, Message: "it hangs: nobody is served"}, s.Verdict())
	s.Spec = nil
	require.Equal(t, HealthUnknown, s.Verdict().Status)
}
