package byggvir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// cellSize is how many bytes a cell takes. It divides the size of a page, so that none
// lies in two: a process that is killed leaves the old or the new.
const cellSize = 128

// cell is what was used in one step: sums, and what was there last and at most. Its
// fields are as they are kept, in the order of bytes of this processor.
type cell struct {
	Check      uint32 // crc32c of the rest
	Counted    figures
	Number     uint64 // of the step since boot, from 1; 0 for an empty cell
	Covered    uint64 // microseconds that the sums are over
	Memory     uint64
	MemoryPeak uint64
	Held       uint64
	CPU        uint64                       // microseconds
	Stalled    [service.NumPressures]uint64 // microseconds
	ReadBytes  uint64
	WriteBytes uint64
	CPUPeak    float32 // percent
	Pids       uint32
	PidsPeak   uint32
	Periods    uint32
	Throttled  uint32 // of Periods
	OOMKills   uint32
	_          [2]uint32
}

// figures tells what of a cell counts, one bit for each.
type figures uint32

const (
	countsMemory figures = 1 << iota
	countsCPU
	countsPeriods
	countsPids
	countsIO
	countsOOM
	countsPressure // of the first, then the others
)

func (c figures) has(bits figures) bool { return c&bits == bits }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode writes c into b, which has cellSize bytes.
func (c cell) encode(b []byte) {
	_, _ = binary.Encode(b, binary.NativeEndian, &c) // it fits, a test says so
	binary.NativeEndian.PutUint32(b, crc32.Checksum(b[4:cellSize], castagnoli))
}

// decode reads what encode wrote.
func decode(b []byte) (c cell, err error) {
	if _, err := binary.Decode(b, binary.NativeEndian, &c); err != nil {
		return cell{}, err
	}
	if c == (cell{}) {
		return c, nil // nothing was ever written
	}
	if c.Check != crc32.Checksum(b[4:cellSize], castagnoli) {
		return cell{}, errors.New("the checksum of a step is wrong")
	}
	return c, nil
}

// place is where a tier keeps the cell of a number.
func place(tier int, number uint64) int64 {
	before := uint64(0)
	for _, t := range tiers[:tier] {
		before += t.cells
	}
	return int64(before+number%tiers[tier].cells) * cellSize
}

// readTier reads the cells of a tier that hold something, in no order.
func readTier(room io.ReaderAt, tier int) ([]cell, error) {
	memory := make([]byte, tiers[tier].cells*cellSize)
	begin := place(tier, 0)
	if _, err := room.ReadAt(memory, begin); err != nil {
		return nil, err
	}
	var cells []cell
	for i := 0; i < len(memory); i += cellSize {
		c, err := decode(memory[i : i+cellSize])
		switch {
		case err != nil:
			return nil, err
		case c.Number == 0:
		case place(tier, c.Number) != begin+int64(i):
			return nil, fmt.Errorf("the step %d is kept where another belongs", c.Number)
		default:
			cells = append(cells, c)
		}
	}
	return cells, nil
}

// checkRoom tells what is wrong with a room.
func checkRoom(room io.ReaderAt) error {
	for tier := range tiers {
		if _, err := readTier(room, tier); err != nil {
			return err
		}
	}
	return nil
}

// add has c tell of what p tells of, too, which came after it.
func (c *cell) add(p cell) {
	c.Covered += p.Covered
	if p.Counted.has(countsMemory) {
		c.Memory, c.MemoryPeak, c.Held = p.Memory, max(c.MemoryPeak, p.MemoryPeak), max(c.Held, p.Held)
	}
	if p.Counted.has(countsPids) {
		c.Pids, c.PidsPeak = p.Pids, max(c.PidsPeak, p.PidsPeak)
	}
	c.CPU += p.CPU
	c.CPUPeak = max(c.CPUPeak, p.CPUPeak)
	for i := range c.Stalled {
		c.Stalled[i] += p.Stalled[i]
	}
	c.ReadBytes += p.ReadBytes
	c.WriteBytes += p.WriteBytes
	c.Periods += p.Periods
	c.Throttled += p.Throttled
	c.OOMKills += p.OOMKills
	c.Counted |= p.Counted
}

// sample is c for others.
func (c *cell) sample(began time.Time, step time.Duration) service.Sample {
	covered := time.Duration(c.Covered) * time.Microsecond
	of := func(bit figures, n uint64) service.Quota {
		if !c.Counted.has(bit) {
			return service.Quota{}
		}
		return service.Of(n)
	}
	share := func(bit figures, part, whole uint64) service.Share {
		if !c.Counted.has(bit) || whole == 0 {
			return service.Share{}
		}
		return service.Share{Percent: percentOf(float64(part), float64(whole)), Set: true}
	}
	s := service.Sample{
		Began: began, Step: step, Measured: covered,
		Memory: of(countsMemory, c.Memory), MemoryPeak: of(countsMemory, c.MemoryPeak), Held: of(countsMemory, c.Held),
		CPU:       share(countsCPU, c.CPU, c.Covered),
		CPUPeak:   service.Share{Percent: float64(c.CPUPeak), Set: c.Counted.has(countsCPU)},
		Throttled: share(countsPeriods, uint64(c.Throttled), uint64(c.Periods)),
		Pids:      of(countsPids, uint64(c.Pids)), PidsPeak: of(countsPids, uint64(c.PidsPeak)),
		ReadBytes: of(countsIO, c.ReadBytes), WriteBytes: of(countsIO, c.WriteBytes),
		OOMKills: of(countsOOM, uint64(c.OOMKills)),
	}
	for p, stalled := range c.Stalled {
		s.Pressure[p] = share(countsPressure<<p, stalled, c.Covered)
	}
	return s
}
