package service

import "time"

// RollingOptions say how services are restarted one after the other.
type RollingOptions struct {
	Stop StopOptions
	Each time.Duration // until one is ready and healthy; 0: as long as its definition allows
}

// RollingStep is how far one service of a rolling restart is.
type RollingStep uint8

// The steps, numbered as on the wire.
const (
	RollingBegun     RollingStep = iota + 1 // it is being restarted
	RollingReady                            // it is ready; whether it is healthy is waited for
	RollingDone                             // it is ready, and healthy if it is asked for that
	RollingFailed                           // it is not
	RollingUntouched                        // one before it failed
)

// Rolling tells how far one service of a rolling restart is.
type Rolling struct {
	Service Name
	Step    RollingStep
	Status  *Status // with RollingReady and RollingDone
	Err     error   // with RollingFailed
}
