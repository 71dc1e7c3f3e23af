import AttentionTestSupport
import IntFlashAttention
import Testing

@Suite struct HadamardRotationTests {
  /// The definition: H[a, b] = (−1)^popcount(a & b) / √p on diagonal blocks.
  @Test(arguments: [1, 2, 3, 8, 20, 64, 96, 128, 256])
  func isTheHadamardMatrix(_ dimension: Int) {
    var random = TestRandom(seed: 4)
    let row = (0..<dimension).map { _ in random.normal() }
    let rotation = HadamardRotation(dimension: dimension)
    let block = rotation.blockLength
    var rotated = row
    rotation.apply(&rotated)
    for a in 0..<dimension {
      let start = a / block * block
      let expected = (0..<block).reduce(0.0) { sum, b in
        let sign = ((a - start) & b).nonzeroBitCount.isMultiple(of: 2) ? 1.0 : -1.0
        return sum + sign * Double(row[start + b]) / Double(block).squareRoot()
      }
      #expect(abs(Double(rotated[a]) - expected) < 1e-5)
    }
    rotation.apply(&rotated)
    for (a, b) in zip(rotated, row) { #expect(abs(a - b) < 1e-5) }
  }

  @Test func blockLengths() {
    let lengths = [1: 1, 2: 2, 3: 1, 12: 4, 64: 64, 80: 16, 96: 32, 128: 128, 192: 64, 256: 256]
    for (dimension, block) in lengths {
      #expect(HadamardRotation(dimension: dimension).blockLength == block)
    }
  }
}
