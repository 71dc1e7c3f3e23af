package import IntFlashAttention

/// Events of one call.
package final class CUDATimer {
  private let begin: CUDAEvent
  private var loopBegin: CUDAEvent?
  private var loopEnd: CUDAEvent?
  private var end: CUDAEvent?

  init(on stream: CUDAStream) throws(AttentionError) {
    begin = try CUDAEvent(recordedOn: stream)
  }

  func loopBegins(on stream: CUDAStream) throws(AttentionError) {
    loopBegin = try CUDAEvent(recordedOn: stream)
  }

  func loopEnds(on stream: CUDAStream) throws(AttentionError) {
    loopEnd = try CUDAEvent(recordedOn: stream)
  }

  func end(on stream: CUDAStream) throws(AttentionError) {
    end = try CUDAEvent(recordedOn: stream)
  }

  /// Seconds of the whole call and of the tile loop alone; waits for the call.
  package func seconds() throws(AttentionError) -> (call: Double, loop: Double) {
    guard let end, let loopBegin, let loopEnd else { return (0, 0) }
    return (try end.seconds(since: begin), try loopEnd.seconds(since: loopBegin))
  }
}
