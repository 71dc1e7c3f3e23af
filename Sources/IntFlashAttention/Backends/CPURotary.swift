internal import CAttentionKernels

/// Rows of one head, or of the heads of one token, that are turned by rotary angles while they are
/// read.
@safe
struct CPURotary {
  let embedding: RotaryEmbedding
  /// Position of the first row.
  let position: Int
  /// From a row's position to the next row's: 1 for tokens, 0 for heads of a token.
  var step = 1

  /// The first `count` rows, turned, as float32 [count][dimension].
  func load(
    _ rows: intfa_rows,
    count: Int,
    dimension: Int,
    into target: UnsafeMutablePointer<Float>,
    _ kernels: intfa_cpu_kernels
  ) {
    let tables = embedding.tables
    var arguments = unsafe intfa_load_rotary()
    unsafe arguments.rows = rows
    unsafe arguments.end = Int64(count)
    unsafe arguments.dimension = Int32(dimension)
    unsafe arguments.pairs = Int32(embedding.rotaryDimension / 2)
    unsafe arguments.interleaved = embedding.style == .interleaved
    unsafe arguments.cosines = tables.cosine
    unsafe arguments.sines = tables.sine
    unsafe arguments.position = Int64(position)
    unsafe arguments.step = Int64(step)
    unsafe arguments.target = target
    unsafe kernels.load_rotary(&arguments)
  }

  /// The same as rows, which lie in `target`.
  func loaded(
    _ rows: intfa_rows,
    count: Int,
    dimension: Int,
    into target: UnsafeMutablePointer<Float>,
    _ kernels: intfa_cpu_kernels
  ) -> intfa_rows {
    unsafe load(rows, count: count, dimension: dimension, into: target, kernels)
    return unsafe intfa_rows(base: target, stride: Int64(dimension), format: INTFA_FLOAT32)
  }
}

extension KVCacheTokens {
  /// What turns keys from the `index`-th on; nil where nothing does.
  func keyRotary(from index: Int) -> CPURotary? {
    rotary.map { CPURotary(embedding: $0.embedding, position: $0.firstPosition + index) }
  }
}

extension CPUSurvey {
  /// The largest magnitude of tokens `range` once they are turned; the first stands at `position`.
  ///
  /// What was not finite is not finite afterwards.
  static func largest(
    of operand: AttentionOperands.Operand,
    _ range: Range<Int>,
    _ tensor: InputCheck.Tensor,
    _ format: OperandFormat,
    _ kernels: intfa_cpu_kernels,
    _ embedding: RotaryEmbedding,
    position: Int
  ) throws(AttentionError) -> Float {
    let dimension = operand.shape[3]
    let limit = InputCheck.limit(for: format)
    let blockLength = 64
    var largest: Float = 0
    var bad: (head: Int, token: Int, row: [Float])?
    var turned = [Float](repeating: 0, count: min(blockLength, range.count) * dimension)
    unsafe turned.withUnsafeMutableBufferPointer { turned in
      guard let target = turned.baseAddress else { return }
      for head in 0..<operand.shape[1] {
        for start in stride(from: range.lowerBound, to: range.upperBound, by: blockLength) {
          let count = min(blockLength, range.upperBound - start)
          let rotary = CPURotary(
            embedding: embedding,
            position: position + start - range.lowerBound
          )
          var (found, firstBad) = (Float(0), Int64(-1))
          unsafe withUnsafeMutablePointer(to: &found) { found in
            unsafe withUnsafeMutablePointer(to: &firstBad) { firstBad in
              var arguments = unsafe intfa_survey()
              unsafe arguments.rows = rotary.loaded(
                rows(operand, head: head, from: start),
                count: count,
                dimension: dimension,
                into: target,
                kernels
              )
              unsafe arguments.end = Int64(count)
              unsafe arguments.dimension = Int32(dimension)
              unsafe arguments.limit = limit
              unsafe arguments.largest = found
              unsafe arguments.first_bad = firstBad
              unsafe kernels.survey(&arguments)
            }
          }
          largest = max(largest, found)
          guard firstBad >= 0 else { continue }
          let row = unsafe UnsafeBufferPointer(
            start: target + Int(firstBad) * dimension,
            count: dimension
          )
          bad = (head, start + Int(firstBad), unsafe Array(row))
          return
        }
      }
    }
    guard let bad else { return largest }
    // The element as it was given where that is what is wrong.
    let given = (0..<dimension).map { operand.view[0, bad.head, bad.token, $0] }
    let row = given.allSatisfy { $0.magnitude < limit } ? bad.row : given
    throw InputCheck.error(
      tensor,
      batch: 0,
      head: bad.head,
      token: bad.token,
      row: row[...],
      limit: limit
    )
  }
}
