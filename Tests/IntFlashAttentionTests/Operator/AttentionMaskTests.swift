import AttentionTestSupport
import IntFlashAttention
import Testing

@Suite struct AttentionMaskTests {
  /// The pictures of the documentation, digit by digit.
  @Test(
    arguments: [
      (AttentionMask.causal, 3, 5, ["11100", "11110", "11111"]),
      (.causal, 3, 2, ["00", "10", "11"]),
      (.causal, 1, 4, ["1111"]),
      (.full, 2, 3, ["111", "111"]),
      (.sliding(left: 1, right: 0), 3, 5, ["01100", "00110", "00011"]),
      (.sliding(left: 1, right: 1), 4, 4, ["1100", "1110", "0111", "0011"]),
      (.sliding(left: nil, right: 0), 3, 5, ["11100", "11110", "11111"]),
      (.sliding(left: 0, right: nil), 2, 2, ["11", "01"]),
      (.sliding(left: nil, right: nil), 2, 3, ["111", "111"]),
      (.sliding(left: .max, right: .max), 2, 3, ["111", "111"]),
      (.sliding(left: 0, right: 0), 4, 2, ["00", "00", "10", "01"]),
      (.prefixCausal(prefix: 4), 3, 5, ["11110", "11110", "11111"]),
      (.prefixCausal(prefix: 1), 4, 2, ["10", "10", "10", "11"]),
      (.prefixCausal(prefix: .max), 2, 3, ["111", "111"]),
      (.prefixCausal(prefix: 0), 3, 5, ["11100", "11110", "11111"]),
    ] as [(AttentionMask, Int, Int, [String])]
  )
  func pictures(_ mask: AttentionMask, _ queries: Int, _ keys: Int, _ picture: [String]) {
    for row in 0..<queries {
      let seen = mask.visibleKeys(row: row, queryLength: queries, keyValueLength: keys)
      let line = (0..<keys).map { seen.contains($0) ? "1" : "0" }.joined()
      #expect(line == picture[row])
    }
  }

  /// Fails where causal alignment flips to the top left, in every backend.
  @Test func theLastQuerySeesTheLastKey() throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 2,
      keyValueLength: 3,
      headDimension: 1
    )
    var inputs = TestInputs(shape)
    inputs.query = [0, 0]
    inputs.key = [0, 0, 0]
    inputs.value = [1, 2, 6]
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      let result = try inputs.attend(
        Precision.float32.recipe,
        AttentionOptions(mask: .causal),
        on: backend
      )
      #expect(abs(result.output[0] - 1.5) < 1e-6)
      #expect(abs(result.output[1] - 3) < 1e-6)
    }
  }

  @Test(arguments: Precision.allCases)
  func rowsThatSeeNoKeyAreZero(_ precision: Precision) throws {
    let shape = try AttentionShape(
      queryHeadCount: 2,
      keyValueHeadCount: 1,
      queryLength: 200,
      keyValueLength: 70,
      headDimension: 16
    )
    let inputs = TestInputs(shape)
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      if precision == .int4QueryKey && backend is CPUBackend { continue }
      let result = try inputs.attend(
        precision.recipe,
        AttentionOptions(mask: .causal),
        on: backend
      )
      for head in 0..<2 {
        #expect(result.output[head * 3200..<head * 3200 + 130 * 16].allSatisfy { $0 == 0 })
        #expect(result.logSumExp[head * 200..<head * 200 + 130].allSatisfy { $0 == -.infinity })
        #expect(result.logSumExp[head * 200 + 130..<head * 200 + 200].allSatisfy { $0.isFinite })
      }
    }
  }

  @Test func noKeysAtAll() throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 3,
      keyValueLength: 0,
      headDimension: 4
    )
    for precision in Precision.allCases {
      for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
        if precision == .int4QueryKey && backend is CPUBackend { continue }
        let result = try TestInputs(shape).attend(precision.recipe, on: backend)
        #expect(result.output == [Float](repeating: 0, count: 12))
        #expect(result.logSumExp == [Float](repeating: -.infinity, count: 3))
      }
    }
  }
}
