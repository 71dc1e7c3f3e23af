import AttentionTestSupport
import CAttentionKernels
import IntFlashAttention
import Testing

/// Kernels of the pre-pass against the plain Swift definitions, bit for bit.
@Suite struct PrepassKernelTests {
  static let shapes: [(count: Int, dimension: Int)] = [
    (1, 1), (3, 7), (64, 16), (65, 20), (255, 33), (257, 64), (600, 96), (70, 128), (33, 256),
  ]

  private func makeRows(_ count: Int, _ dimension: Int) -> HeadRows {
    var random = TestRandom(seed: UInt64(count * 1000 + dimension))
    var rows = HeadRows(
      count: count,
      dimension: dimension,
      values: (0..<count * dimension).map { _ in random.normal() * 3 + 1 }
    )
    // A row of zeros, one constant row, one huge and one tiny value.
    if count > 4 {
      for channel in 0..<dimension {
        rows.values[dimension + channel] = 0
        rows.values[2 * dimension + channel] = 2.5
      }
      rows.values[3 * dimension] = 1e15
      rows.values[4 * dimension] = 1e-30
    }
    return rows
  }

  @Test(arguments: InstructionSet.supported, shapes)
  func quantizedRowsAreTheDefinition(
    _ set: InstructionSet,
    _ shape: (count: Int, dimension: Int)
  ) throws {
    let kernels = unsafe try set.kernelTable()
    let (count, dimension) = shape
    for (centers, rotates) in [(false, false), (true, false), (false, true), (true, true)] {
      var expected = makeRows(count, dimension)
      let source = expected.values
      let mean = expected.mean()
      if centers { expected.subtract(mean) }
      if rotates { expected.rotate() }
      let definition = HeadCodes(expected, .int8(.token))
      var biasMeans = (0..<2 * dimension).map { Float($0 % 5) - 2 }
      let expectedBias = (0..<2).map { head in
        (0..<count).map { row in
          0.25
            * HeadRows.dot(
              Array(biasMeans[head * dimension..<(head + 1) * dimension]),
              expected.row(row)
            )
        }
      }

      var codes = [Int8](repeating: 99, count: count * dimension)
      var scales = [Float](repeating: .nan, count: count)
      var biases = [Float](repeating: .nan, count: 2 * count)
      unsafe source.withUnsafeBufferPointer { sourceBuffer in
        unsafe mean.withUnsafeBufferPointer { meanBuffer in
          unsafe codes.withUnsafeMutableBufferPointer { codeBuffer in
            unsafe scales.withUnsafeMutableBufferPointer { scaleBuffer in
              unsafe biasMeans.withUnsafeMutableBufferPointer { biasMeanBuffer in
                unsafe biases.withUnsafeMutableBufferPointer { biasBuffer in
                  var arguments = unsafe intfa_quantize()
                  unsafe arguments.rows = intfa_rows(
                    base: sourceBuffer.baseAddress,
                    stride: Int64(dimension),
                    format: INTFA_FLOAT32
                  )
                  unsafe arguments.end = Int64(count)
                  unsafe arguments.dimension = Int32(dimension)
                  unsafe arguments.rotates = rotates
                  unsafe arguments.mean = centers ? meanBuffer.baseAddress : nil
                  unsafe arguments.codes = codeBuffer.baseAddress
                  unsafe arguments.scales = scaleBuffer.baseAddress
                  unsafe arguments.bias_count = 2
                  unsafe arguments.bias_means = UnsafePointer(biasMeanBuffer.baseAddress)
                  unsafe arguments.bias_mean_stride = Int64(dimension)
                  unsafe arguments.bias_factor = 0.25
                  unsafe arguments.biases = biasBuffer.baseAddress
                  unsafe arguments.bias_stride = Int64(count)
                  unsafe kernels.quantize(&arguments)
                }
              }
            }
          }
        }
      }
      #expect(codes.map(Float.init) == definition.codes)
      #expect(scales == definition.rowScales)
      #expect(biases == expectedBias[0] + expectedBias[1])
    }
  }

  @Test(arguments: InstructionSet.supported, shapes)
  func surveyFindsSumsMagnitudesAndBadRows(
    _ set: InstructionSet,
    _ shape: (count: Int, dimension: Int)
  ) throws {
    let kernels = unsafe try set.kernelTable()
    let (count, dimension) = shape
    var rows = makeRows(count, dimension)
    for bad in [nil, 0, count / 2, count - 1] as [Int?] {
      let kept = rows.values
      if let bad { rows.values[bad * dimension + dimension - 1] = .nan }
      let blocks = (count + 255) / 256
      var sums = [Float](repeating: .nan, count: blocks * dimension)
      var largest = Float.nan
      var firstBad: Int64 = -2
      unsafe rows.values.withUnsafeBufferPointer { source in
        unsafe sums.withUnsafeMutableBufferPointer { sumBuffer in
          var arguments = unsafe intfa_survey()
          unsafe arguments.rows = intfa_rows(
            base: source.baseAddress,
            stride: Int64(dimension),
            format: INTFA_FLOAT32
          )
          unsafe arguments.end = Int64(count)
          unsafe arguments.dimension = Int32(dimension)
          unsafe arguments.limit = 0x1p60
          unsafe arguments.block_sums = sumBuffer.baseAddress
          unsafe withUnsafeMutablePointer(to: &largest) { largest in
            unsafe withUnsafeMutablePointer(to: &firstBad) { firstBad in
              unsafe arguments.largest = largest
              unsafe arguments.first_bad = firstBad
              unsafe kernels.survey(&arguments)
            }
          }
        }
      }
      #expect(firstBad == bad.map(Int64.init) ?? -1)
      if bad == nil {
        #expect(largest == rows.largest())
        let mean = (0..<dimension).map { channel in
          (1..<max(blocks, 1)).reduce(sums[channel]) { $0 + sums[$1 * dimension + channel] }
            / Float(count)
        }
        #expect(mean == rows.mean())
      }
      rows.values = kept
    }
  }

  /// The portable storage is the documented one: nibbles, steps and offsets per group.
  @Test(arguments: shapes)
  func fourBitKeysDecodeToTheDefinition(_ shape: (count: Int, dimension: Int)) throws {
    let (count, dimension) = shape
    let packed = try pack(shape, keys: true)
    let expected = HeadCodes(
      makeRows(count, dimension),
      .int4Progressive(tokens: 32, channels: 1)
    ).codes
    for token in 0..<count {
      let group = Array(packed[(token / 32 * 18 * dimension)...].prefix(18 * dimension))
      for channel in 0..<dimension {
        let code = group[channel * 16 + token % 32 / 2] >> UInt8(token % 2 * 4) & 15
        let grouping = ProgressiveGroup(
          step: Float(group[16 * dimension + channel]),
          offset: Float(Int8(bitPattern: group[17 * dimension + channel]))
        )
        #expect(grouping.decoded(Float(code)) == expected[token * dimension + channel])
      }
    }
  }

  @Test(arguments: shapes)
  func fourBitValuesDecodeToTheDefinition(_ shape: (count: Int, dimension: Int)) throws {
    let (count, dimension) = shape
    let packed = try pack(shape, keys: false)
    let expected = HeadCodes(
      makeRows(count, dimension),
      .int4Progressive(tokens: 1, channels: 16)
    ).codes
    let groups = (dimension + 15) / 16
    let bytes = (dimension + 1) / 2 + 2 * groups
    for token in 0..<count {
      let row = Array(packed[(token * bytes)...].prefix(bytes))
      for channel in 0..<dimension {
        let code = row[channel / 2] >> UInt8(channel % 2 * 4) & 15
        let place = (dimension + 1) / 2 + channel / 16
        let grouping = ProgressiveGroup(
          step: Float(row[place]),
          offset: Float(Int8(bitPattern: row[place + groups]))
        )
        #expect(grouping.decoded(Float(code)) == expected[token * dimension + channel])
      }
    }
  }

  private func pack(_ shape: (count: Int, dimension: Int), keys: Bool) throws -> [UInt8] {
    let (count, dimension) = shape
    let kernels = unsafe try InstructionSet.portable.kernelTable()
    let codes = HeadCodes(makeRows(count, dimension), .int8(.token)).codes.map { Int8($0) }
    let bytes =
      unsafe keys
      ? kernels.key_bytes(Int64(count), Int32(dimension), true)
      : kernels.value_bytes(Int64(count), Int32(dimension), true)
    var packed = [UInt8](repeating: 0xAA, count: Int(bytes))
    unsafe codes.withUnsafeBufferPointer { codes in
      unsafe packed.withUnsafeMutableBytes { packed in
        var arguments = unsafe intfa_pack()
        unsafe arguments.codes = codes.baseAddress
        unsafe arguments.end = Int64(count)
        unsafe arguments.dimension = Int32(dimension)
        unsafe arguments.int4 = true
        unsafe arguments.target = packed.baseAddress
        if keys {
          unsafe kernels.pack_keys(&arguments)
        } else {
          unsafe kernels.pack_values(&arguments)
        }
      }
    }
    return packed
  }
}
