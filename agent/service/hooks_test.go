package service

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHooksTakeTime(t *testing.T) {
	s := Defaults()
	require.Equal(t, 30*time.Second, s.StartTime())
	require.Equal(t, 10*time.Second, s.StopTime(nil))
	one := [][]string{{"/a"}}
	s.Hooks = Hooks{PreStart: append(one, one...), PostStart: one, PreStop: one, PostStop: one, Timeout: time.Minute}
	require.Equal(t, 3*time.Minute+30*time.Second, s.StartTime())
	require.Equal(t, time.Minute+10*time.Second, s.StopTime(nil), "pre_stop is within the stop")
	given := time.Second
	require.Equal(t, time.Minute+time.Second, s.StopTime(&given))
}
