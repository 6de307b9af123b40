//go:build race

package accesslog

// raceDetector makes sync.Pool forget at random.
const raceDetector = true
