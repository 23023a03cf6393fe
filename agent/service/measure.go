package service

// Measure is what is done about a violation, as it is counted.
type Measure uint8

// The measures.
const (
	NoMeasure       Measure = iota // nothing that counts, as when a limit is given back
	MeasureWarn                    // a warning level was reached, which was told
	MeasureThrottle                // it was held to its warning level
	MeasureStop                    // it was ended
	MeasureLivelock                // its livelock was broken, by lifting memory_high or by its end
	NumMeasures
)

var measureNames = [NumMeasures]string{"none", "warn", "throttle", "stop", "livelock"}

func (m Measure) String() string { return measureNames[m] }

// Measures counts those that were taken.
type Measures [NumMeasures]uint64

// Count adds one of m.
func (c *Measures) Count(m Measure) {
	if m != NoMeasure {
		c[m]++
	}
}
